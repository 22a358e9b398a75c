// Services as summaries name them (`traces.md` §4). In: a forest. Out: one value per node of the trace.

import Segments

/// A `ServiceId`: two of them are equal when they are the same node (`service-graph.md` §2).
public struct ServiceID: Hashable, Sendable {
    public var name: ExactString
    /// `origin` of a segment, type of an inferred node, `client`; nil when a segment has no origin.
    public var type: ExactString?
    /// Only when it differs from the receiving account (ruling R-02).
    public var account: ExactString?

    public init(name: ExactString, type: ExactString?, account: ExactString?) {
        self.name = name
        self.type = type
        self.account = account
    }
}

extension Forest {
    /// The node a segment reports.
    public func service(ofSegment index: Int32) -> ServiceID {
        let type = trace.entities[Int(index)].entity.origin.map { ExactString($0) }
        return ServiceID(
            name: ExactString(trace.entities[Int(index)].entity.name), type: type, account: foreignAccount(of: index))
    }

    /// The node a remote call stands for while it is a leaf.
    public func inferredService(ofCall index: Int32) -> ServiceID {
        let inferred = InferredService(of: trace.entities[Int(index)].entity)
        return ServiceID(
            name: ExactString(inferred.name), type: ExactString(inferred.type), account: foreignAccount(of: index))
    }

    /// The client node in front of the root; nil without a root.
    public var clientService: ServiceID? {
        guard root >= 0 else { return nil }
        return ServiceID(
            name: ExactString(trace.entities[Int(root)].entity.name), type: "client", account: foreignAccount(of: root))
    }

    private func foreignAccount(of index: Int32) -> ExactString? {
        guard let account = trace.entities[Int(index)].entity.accountID, account != trace.account.description else {
            return nil
        }
        return ExactString(account)
    }
}
