// ARNs of the service's own resources (`api.md` §1.9): what tags and group references are given as. The region is
// configuration, not part of a resource's name: an ARN with another one denotes the same resource.

import Segments

public struct ResourceARN: Sendable, Equatable {
    public var service: String
    public var region: String
    public var account: String
    /// What follows the account: `group/name/id`, `sampling-rule/name`.
    public var resource: String

    /// Nil for text that is not an ARN: `arn:{partition}:{service}:{region}:{account}:{resource}`.
    public init?(parsing text: String) {
        let parts = text.split(separator: ":", maxSplits: 5, omittingEmptySubsequences: false)
        guard parts.count == 6, parts[0] == "arn", !parts[1].isEmpty, !parts[2].isEmpty, !parts[5].isEmpty else {
            return nil
        }
        service = String(parts[2])
        region = String(parts[3])
        account = String(parts[4])
        resource = String(parts[5])
    }

    public static func text(region: String, account: AccountID, resource: String) -> String {
        "arn:aws:xray:\(region):\(account):\(resource)"
    }

    /// The resource, if it is one of this service and account.
    public func resource(of account: AccountID) -> String? {
        service == "xray" && self.account == account.description ? resource : nil
    }
}
