// Stored groups as the evaluator of filter expressions wants them: for the aggregator, which decides who is a member, and
// for searches by `group.name`.

import FilterExpressions
import Segments

extension GroupResolver {
    /// - Parameter groups: of one account. One whose filter cannot be read (accepted by a laxer release) is left out:
    ///   it matches nothing.
    public init(of groups: [TraceGroup]) {
        var parsed = groups.filter { !$0.isDefault }.compactMap { group in
            (try? FilterExpression(parsing: group.filter, limits: .group)).map {
                Group(name: group.name, arn: group.arn, expression: $0)
            }
        }
        // `Default` has no row of its own to say its region; it is that of the others.
        if let beside = groups.first(where: { !$0.isDefault })?.arn {
            let parts = beside.split(separator: ":", maxSplits: 5, omittingEmptySubsequences: false)
            let arn = (parts.prefix(5) + [TraceGroup.defaultGroup.resource[...]]).joined(separator: ":")
            parsed.append(Group(name: TraceGroup.defaultName, arn: arn, expression: .everything))
        }
        self.init(parsed)
    }
}
