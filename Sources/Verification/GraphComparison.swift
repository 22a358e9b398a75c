// Compares two service graphs in the form the API serves them, node by node and edge by edge, by identity and not by
// `ReferenceId`. In: the `Services` of both. Out: one sentence for each difference, and how many observations stood behind it.

import JSONText

public struct GraphComparison {
    /// Observations of the recounted graph, at nodes and on edges.
    public private(set) var observations = 0
    public private(set) var differences: [String] = []

    /// - Parameters: JSON objects with a list `Services` each, all pages of one graph together.
    /// - Throws: `JSONParseError`.
    public init(recounted: [[UInt8]], served: [[UInt8]]) throws {
        let expected = try Self.facts(recounted)
        let found = try Self.facts(served)
        observations = expected.observations
        for (subject, fields) in expected.subjects.sorted(by: { $0.key < $1.key }) {
            guard let other = found.subjects[subject] else {
                differences.append("\(subject) is missing from the graph that is served")
                continue
            }
            for name in Set(fields.keys).union(other.keys).sorted() where fields[name] != other[name] {
                differences.append(
                    "\(subject): \(name) is \(other[name] ?? "absent"), recounted \(fields[name] ?? "absent")")
            }
        }
        for subject in found.subjects.keys.sorted() where expected.subjects[subject] == nil {
            differences.append("\(subject) is served, but no document accounts for it")
        }
    }

    private static func facts(_ pages: [[UInt8]]) throws -> (subjects: [String: [String: String]], observations: Int) {
        let parser = JSONParser()
        var subjects: [String: [String: String]] = [:]
        var observations = 0
        var names: [Int64: String] = [:]
        func count(_ subject: JSONValue) {
            observations += Int(subject.member("SummaryStatistics")?.member("TotalCount")?.wholeNumber ?? 0)
        }
        // Edges name their destination by ReferenceId, which may stand on another page.
        for page in pages {
            try parser.parse(page).member("Services")?.forEachElement { service in
                names[service.member("ReferenceId")?.wholeNumber ?? -1] = identity(service)
            }
        }
        for page in pages {
            try parser.parse(page).member("Services")?.forEachElement { service in
                let node = identity(service)
                subjects["node " + node] = fields(service)
                count(service)
                service.member("Edges")?.forEachElement { edge in
                    let destination = names[edge.member("ReferenceId")?.wholeNumber ?? -1] ?? "(no such node)"
                    let kind = edge.member("EdgeType")?.string?.string ?? "edge"
                    subjects["\(kind) \(node) → \(destination)"] = fields(edge)
                    count(edge)
                }
            }
        }
        return (subjects, observations)
    }

    private static func identity(_ service: JSONValue) -> String {
        let name = service.member("Name")?.string?.string ?? "(no name)"
        let type = service.member("Type")?.string?.string ?? "no type"
        let account = service.member("AccountId")?.string?.string
        return "\(name) (\(type)\(account.map { ", account " + $0 } ?? ""))"
    }

    private static func fields(_ subject: JSONValue) -> [String: String] {
        var result: [String: String] = [:]
        for (key, value) in subject.members {
            if key == "Edges" || key == "ReferenceId" { continue }
            if key == "Aliases" {
                result["Aliases"] = value.elements.map(text).sorted().joined(separator: ", ")
            } else {
                let shown = text(value)
                // An empty histogram may be omitted.
                if shown != "[]" { result[key.string] = shown }
            }
        }
        return result
    }

    private static func text(_ value: JSONValue) -> String {
        if value.isObject {
            return "{" + value.members.map { "\($0.key.string): \(text($0.value))" }.joined(separator: ", ") + "}"
        }
        if value.isArray { return "[" + value.elements.map(text).joined(separator: ", ") + "]" }
        if let string = value.string { return string.string }
        if let bool = value.bool { return "\(bool)" }
        if let whole = value.wholeNumber { return "\(whole)" }
        return value.double.map { "\($0)" } ?? "null"
    }
}
