// What `group.name` and `group.arn` stand for (`filter-expressions.md` §6): the groups of one account at one moment.
// In: names, ARNs and expressions. Callers: the evaluator, and whoever creates or updates a group.

import Segments
import TraceAssembly

/// A snapshot of an account's groups. `Default` stands for every trace, listed or not.
public struct GroupResolver: Sendable {
    public struct Group: Sendable {
        public var name: String
        public var arn: String
        public var expression: FilterExpression

        public init(name: String, arn: String, expression: FilterExpression) {
            self.name = name
            self.arn = arn
            self.expression = expression
        }
    }

    enum Meaning: Equatable {
        case unknown
        /// The group `Default`.
        case everything
        case group(Int)
    }

    public let groups: [Group]
    private var byName: [ExactString: Int] = [:]
    private var byARN: [ExactString: Int] = [:]
    /// The groups each one refers to, without unknown ones.
    private var references: [[Int]] = []

    public static let none = GroupResolver([])

    public init(_ groups: [Group]) {
        self.groups = groups
        for (index, group) in groups.enumerated() {
            byName[ExactString(group.name)] = index
            byARN[ExactString(group.arn)] = index
        }
        references = groups.map { group in
            group.expression.groupReferences.compactMap { reference in
                if case .group(let index) = meaning(of: reference) { index } else { nil }
            }
        }
    }

    var count: Int { groups.count }

    func expression(ofGroup index: Int) -> FilterExpression { groups[index].expression }

    func references(ofGroup index: Int) -> [Int] { references[index] }

    func meaning(of reference: GroupReference) -> Meaning {
        switch reference {
        case .name(let name):
            if let index = byName[name] { return .group(index) }
            return name == "Default" ? .everything : .unknown
        case .arn(let arn):
            return byARN[arn].map(Meaning.group) ?? .unknown
        }
    }

    /// Which groups a trace is in, by position in `groups`. Each is evaluated once, whoever refers to it.
    public func memberships(of facts: TraceFacts) -> [Int] {
        guard facts.forest.root >= 0 else { return [] }
        var evaluator = Evaluator(facts: facts, groups: self, window: nil)
        return groups.indices.filter { evaluator.value(ofGroup: $0) == true }
    }

    /// Whether a group would refer to itself, directly or through others, if it had this expression. Ask before a group
    /// is created or updated; nothing else keeps groups from going in circles.
    public func wouldReferToItself(name: String, arn: String, expression: FilterExpression) -> Bool {
        let own: Set<GroupReference> = [.name(ExactString(name)), .arn(ExactString(arn))]
        var waiting = expression.groupReferences
        var seen: Set<GroupReference> = []
        while let reference = waiting.popLast() {
            if own.contains(reference) { return true }
            guard seen.insert(reference).inserted, case .group(let index) = meaning(of: reference) else { continue }
            waiting += groups[index].expression.groupReferences
        }
        return false
    }
}
