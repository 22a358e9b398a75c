// The nodes and edges of one trace with every place where they occur, as the service graph makes them
// (`service-graph.md` §2, §5), open entities included. In: a forest. Callers: `service()` and `edge()`.

import Segments
import TraceAssembly

struct TraceNodes {
    struct Node {
        var name: ExactString
        var type: ExactString?
        /// The receiving account where the entity states none.
        var accountID: ExactString
    }

    /// One segment, one leaf call, or the root segment standing for the client in front of it.
    struct Occurrence {
        enum Kind { case segment, inferred, client }
        var kind: Kind
        var node: Int
        var entity: Int32
    }

    /// One call, or a segment that was called without one or by a client.
    struct Connection {
        var source: Int
        var destination: Int
        var isFromClient: Bool
        var entity: Int32
    }

    private(set) var nodes: [Node] = []
    private(set) var occurrences: [Occurrence] = []
    private(set) var connections: [Connection] = []
    /// The node of the trace's root segment. A trace without a root has no nodes.
    private(set) var root = -1

    init(_ forest: Forest) {
        guard forest.root >= 0 else { return }
        let receiving = ExactString(forest.trace.account.description)
        var known: [ServiceID: Int] = [:]
        func node(_ service: ServiceID) -> Int {
            if let node = known[service] { return node }
            known[service] = nodes.count
            nodes.append(Node(name: service.name, type: service.type, accountID: service.account ?? receiving))
            return nodes.count - 1
        }

        var nodeOf = [Int](repeating: -1, count: forest.count)
        for index in 0..<Int32(forest.count) {
            let kind: Occurrence.Kind
            if forest.owner[Int(index)] == index {
                kind = .segment
                nodeOf[Int(index)] = node(forest.service(ofSegment: index))
            } else if forest.isLeafCall(index) {
                kind = .inferred
                nodeOf[Int(index)] = node(forest.inferredService(ofCall: index))
            } else {
                continue
            }
            occurrences.append(Occurrence(kind: kind, node: nodeOf[Int(index)], entity: index))
        }
        root = nodeOf[Int(forest.root)]

        for position in occurrences.indices {
            let occurrence = occurrences[position]
            let index = occurrence.entity
            let above = forest.parent[Int(index)]
            guard above >= 0 else {
                // Only the root was called by a client; whoever called another segment is unknown.
                if index == forest.root, let client = forest.clientService {
                    let source = node(client)
                    occurrences.append(Occurrence(kind: .client, node: source, entity: index))
                    connections.append(
                        Connection(source: source, destination: occurrence.node, isFromClient: true, entity: index))
                }
                continue
            }
            let caller = nodeOf[Int(forest.owner[Int(above)])]
            let isCalledByCall = occurrence.kind == .segment && forest.isResolvedCall(above)
            connections.append(
                Connection(
                    source: caller, destination: occurrence.node, isFromClient: false,
                    entity: isCalledByCall ? above : index))
        }
    }

    func node(ofOccurrence index: Int) -> Node { nodes[occurrences[index].node] }

    // MARK: Selecting

    func selects(_ selector: NodeSelector?, _ occurrence: Occurrence) -> Bool {
        guard let selector else { return occurrence.kind != .client }
        return selects(selector, occurrence.node, isClient: occurrence.kind == .client)
    }

    func selects(_ selector: EdgeSelector?, _ connection: Connection) -> Bool {
        guard let selector else { return true }
        return selects(selector.source, connection.source, isClient: connection.isFromClient)
            && selects(selector.destination, connection.destination, isClient: false)
    }

    private func selects(_ selector: NodeSelector, _ index: Int, isClient: Bool) -> Bool {
        if isClient, !selector.reachesClients { return false }
        let node = nodes[index]
        return selector.matches(name: node.name, type: node.type, accountID: node.accountID)
    }
}
