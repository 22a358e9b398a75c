// The small language of `GetTimeSeriesServiceStatistics` (`filter-expressions.md` §8): which node or which edge the
// statistics are of. Not a predicate, so no braces, no AND, no OR.

import Segments

/// One node or one edge, without a condition.
public enum EntitySelector: Hashable, Sendable {
    case service(NodeSelector)
    case edge(source: NodeSelector, destination: NodeSelector)

    /// Unicode scalars.
    public static let longest = 500

    public struct ParseError: Error, Equatable, Sendable, CustomStringConvertible {
        public var description: String { "Invalid entity selector expression" }
    }

    /// Reads `service(node)`, `edge(node, node)` or a lone `id(…)`, where a node is a quoted name or `id(…)`.
    public init(parsing text: String) throws(ParseError) {
        let selector: FilterExpression?
        do {
            var parser = try Parser(text, limits: FilterExpressionLimits(characters: EntitySelector.longest))
            selector = try parser.loneSelector()
        } catch {
            throw ParseError()
        }
        switch selector {
        case .service(let node?, body: nil): self = .service(node)
        case .edge(let edge?, body: nil): self = .edge(source: edge.source, destination: edge.destination)
        default: throw ParseError()
        }
    }
}
