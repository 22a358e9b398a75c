// Who a node of the service graph is (`service-graph.md` §2).

import Segments

/// Identity of a node: equal identities are one node in any result.
public struct NodeIdentity: Hashable, Sendable {
    public var name: ExactString
    /// `origin` of a segment, type of an inferred node, `client`; nil when a segment has no origin.
    public var type: ExactString?
    /// `aws.account_id` of the entity the node is made from, else the receiving account (12 digits; ruling R-02).
    public var account: ExactString

    public init(name: ExactString, type: ExactString?, account: ExactString) {
        self.name = name
        self.type = type
        self.account = account
    }
}
