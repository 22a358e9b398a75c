// Groups inside expressions (`filter-expressions.md` §6): groups of groups, unknown groups, and circles.

import Segments
import Testing
import TraceAssembly

@testable import FilterExpressions

private func groups(_ definitions: (String, String)...) throws -> GroupResolver {
    GroupResolver(
        try definitions.map { name, text in
            .init(name: name, arn: "arn:\(name)", expression: try FilterExpression(parsing: text))
        })
}

@Suite struct GroupResolverTests {
    private let trace: TraceFacts

    init() throws {
        trace = TraceFacts(forest: try folded([entity(1, "web", 0, 1, [#""user":"alice""#])]))
    }

    private func matches(_ text: String, _ groups: GroupResolver) throws -> Bool {
        try FilterExpression(parsing: text).matches(trace, groups: groups)
    }

    // If this fails, a group inside a filter is another set of traces than the group itself.
    @Test func `a group stands for its expression, by name and by ARN`() throws {
        let groups = try groups(
            ("alice", #"user = "alice""#), ("bob", #"user = "bob""#),
            ("either", "group.name = alice OR group.arn = \"arn:bob\""),
            ("all", ""))
        for text in [
            "group.name = alice", "group.arn = \"arn:alice\"", "group.name != bob", "!group.name = bob",
            "group.name = either",
            "group.name = all", "group.name = Default", "group.name = alice AND ok",
        ] {
            #expect(try matches(text, groups), "\(text)")
        }
        for text in [
            "group.name = bob", "group.name != alice", "group.name != Default", "group.name = default",
            "group.name = ALICE",
            "group.arn = alice", "group.name = \"arn:alice\"",
        ] {
            #expect(try !matches(text, groups), "\(text)")
        }
        #expect(groups.memberships(of: trace) == [0, 2, 3])
    }

    // If this fails, a misspelt group shows every trace that is not in it.
    @Test func `an unknown group is false, for both operators`() throws {
        for text in ["group.name = nope", "group.name != nope", "group.arn = nope", "group.arn != nope"] {
            #expect(try !matches(text, .none))
            #expect(try matches("!\(text)", .none))
        }
    }

    // If this fails, a group can be saved that has no meaning.
    @Test func `circles are found before they are made`() throws {
        let groups = try groups(
            ("a", "group.name = b"), ("b", "!(ok AND group.arn = \"arn:c\")"), ("c", "fault"),
            ("d", "group.name = later"))
        func wouldRefer(_ name: String, _ text: String) throws -> Bool {
            groups.wouldReferToItself(name: name, arn: "arn:\(name)", expression: try FilterExpression(parsing: text))
        }
        #expect(try wouldRefer("c", "group.name = c"))
        #expect(try wouldRefer("c", "group.arn = \"arn:c\""))
        #expect(try wouldRefer("c", "ok OR !(group.name != a)"))
        #expect(try wouldRefer("c", "group.name = b"))
        #expect(try wouldRefer("b", "group.name = a"))
        // A group that others already name becomes part of their circle when it is created.
        #expect(try wouldRefer("later", "group.name = d"))
        #expect(try !wouldRefer("a", "group.name = c OR group.name = b OR group.name = nope"))
        #expect(try !wouldRefer("e", "group.name = a AND group.name = b AND group.name = Default"))
        #expect(try !wouldRefer("c", "fault"))
    }

    // If this fails, two updates at the same moment make a circle that hangs every query.
    @Test func `a circle in the store is false and ends`() throws {
        let groups = try groups(
            ("a", "group.name = b"), ("b", "group.name = a"), ("self", "group.name = self"),
            ("beside", "ok OR group.name = a"))
        #expect(try !matches("group.name = a OR group.name = b OR group.name = self", groups))
        #expect(try matches("group.name = beside", groups))
    }

    // If this fails, a few groups made for the purpose stop the server: by time (each asks for the next many times) or
    // by depth (each is nested as deep as it may be).
    @Test func `groups of groups of groups are evaluated once each`() throws {
        let open = String(repeating: "(!", count: 40)
        let close = String(repeating: ")", count: 40)
        var definitions: [GroupResolver.Group] = [.init(name: "g0", arn: "a0", expression: .test(FilterTest(.fault)))]
        for number in 1...2_000 {
            let reference = "group.name = g\(number - 1)"
            let text = "\(open)(\(Array(repeating: reference, count: 20).joined(separator: " OR ")))\(close)"
            let expression = try FilterExpression(parsing: text, limits: .group)
            definitions.append(.init(name: "g\(number)", arn: "a\(number)", expression: expression))
        }
        let groups = GroupResolver(definitions.reversed())
        #expect(try !matches("group.name = g2000", groups))
        #expect(try matches("group.name != g2000", groups))
        #expect(groups.memberships(of: trace) == [])
        #expect(
            !groups.wouldReferToItself(
                name: "new", arn: "new", expression: try FilterExpression(parsing: "group.name = g2000")))
        #expect(
            groups.wouldReferToItself(
                name: "g0", arn: "a0", expression: try FilterExpression(parsing: "group.name = g2000")))
    }
}
