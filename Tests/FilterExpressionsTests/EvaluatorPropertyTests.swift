// Random expressions on random traces: the evaluator against a reading of the specification that was written apart
// from it, and the nodes and edges of filters against those of the service graph.

import Fixtures
import Segments
import ServiceGraph
import Testing
import TraceAssembly

@testable import FilterExpressions

@Suite struct EvaluatorPropertyTests {
    // If this fails, some filter finds traces it should not, or misses some.
    @Test func `random expressions on random traces mean what the specification says`() throws {
        var random = SeededGenerator(printingSeedFor: "evaluation")
        var traces = RandomTraces(seed: random.next())
        var generator = ExpressionGenerator(random: SeededGenerator(seed: random.next()))
        var matching = 0
        var tried = 0
        for _ in 0..<150 {
            let forest = try traces.next()
            guard let summary = TraceSummary(forest: forest) else {
                #expect(!FilterExpression.everything.matches(TraceFacts(forest: forest)))
                continue
            }
            generator.groupNames = []
            var groups: [GroupResolver.Group] = []
            for name in ["g0", "g1"] {
                generator.groupNames = ["Default", "unknown"] + groups.map(\.name)
                groups.append(.init(name: name, arn: name, expression: generator.expression()))
            }
            generator.groupNames += ["g1"]
            let resolver = GroupResolver(groups)
            var naive = NaiveEvaluation(
                forest: forest, summary: summary,
                groups: Dictionary(uniqueKeysWithValues: groups.map { ($0.name, $0.expression) }))
            let facts = random.chance(50) ? TraceFacts(forest: forest) : TraceFacts(forest: forest, summary: summary)
            for _ in 0..<60 {
                let expression = generator.expression()
                let start = summary.startTime + Micros.random(in: -100_000...500_000, using: &random)
                naive.window = random.chance(30) ? start..<(start + 300_000) : nil
                let expected = naive.matches(expression)
                tried += 1
                matching += expected ? 1 : 0
                guard expression.matches(facts, groups: resolver, endedIn: naive.window) == expected else {
                    Issue.record(
                        "\(expression.canonical) should be \(expected), groups \(groups.map(\.expression.canonical))")
                    return
                }
            }
            #expect(
                resolver.memberships(of: facts)
                    == groups.indices.filter { groups[$0].expression.matches(facts, groups: resolver) })
        }
        // The comparison is worth nothing when everything is false.
        #expect(matching > tried / 10 && matching < tried * 9 / 10)
    }

    // If this fails, a node or an edge that is on the map cannot be filtered by, or the other way round.
    @Test func `nodes and edges are those of the trace graph`() throws {
        let seed = SeededGenerator(printingSeedFor: "nodes and edges").seed
        var traces = RandomTraces(seed: seed)
        for _ in 0..<150 {
            let forest = try traces.next()
            guard forest.root >= 0 else { continue }
            let graph = traceGraph(of: [forest], account: receivingAccount)
            let facts = TraceFacts(forest: forest)
            func describe(_ service: GraphService) -> ExactString {
                let account = service.accountID ?? receivingAccount.description
                return ExactString("\(service.name)|\(service.type ?? "-")|\(account)")
            }
            func describe(_ index: Int) -> ExactString {
                let node = facts.nodes.nodes[index]
                return ExactString("\(node.name.value)|\(node.type?.value ?? "-")|\(node.accountID.value)")
            }
            var names: [Int: ExactString] = [:]
            for service in graph.services { names[service.referenceID] = describe(service) }
            var edges: Set<[ExactString]> = []
            for service in graph.services {
                for edge in service.edges { edges.insert([describe(service), names[edge.referenceID] ?? "?"]) }
            }
            let nodes = facts.nodes
            let connections = Set(nodes.connections.map { [describe($0.source), describe($0.destination)] })
            #expect(Set(nodes.nodes.indices.map { describe($0) }) == Set(names.values))
            #expect(connections == edges)
            #expect(graph.services.filter(\.isRoot).map { describe($0) } == [describe(nodes.root)])
        }
    }
}
