// An expression as text: what a user would type for it. It parses to the same expression, so it serves as the key of
// caches, in messages, and in the plan that `search` explains.

import Segments

extension FilterExpression {
    /// The one text of all that mean this expression. It may be longer than what it was parsed from.
    public var canonical: String {
        var text = ""
        write(to: &text)
        return text
    }

    private func write(to text: inout String) {
        switch self {
        case .everything:
            break
        case .test(let test):
            test.write(to: &text)
        case .not(let inner):
            text += "!"
            switch inner {
            case .and, .or: inner.writeEnclosed(by: "(", ")", to: &text)
            default: inner.write(to: &text)
            }
        case .and(let parts):
            for (index, part) in parts.enumerated() {
                if index > 0 { text += " AND " }
                if case .or = part { part.writeEnclosed(by: "(", ")", to: &text) } else { part.write(to: &text) }
            }
        case .or(let parts):
            for (index, part) in parts.enumerated() {
                if index > 0 { text += " OR " }
                part.write(to: &text)
            }
        case .service(let selector, let body):
            text += "service("
            selector?.write(to: &text)
            text += ")"
            body?.writeBody(to: &text)
        case .edge(let selector, let body):
            text += "edge("
            if let selector {
                selector.source.write(to: &text)
                text += ", "
                selector.destination.write(to: &text)
            }
            text += ")"
            body?.writeBody(to: &text)
        case .rootCause(let kind, let level, let body):
            text += "rootcause.\(kind.rawValue).\(level.rawValue)"
            body.writeBody(to: &text)
        case .rootCauseJSON(let elements, let isNegated):
            text += "rootcause.json \(isNegated ? "!=" : "=") #"
            FilterJSON.array(elements).write(to: &text)
        case .group(let reference, let isNegated):
            let comparison = isNegated ? "!=" : "="
            switch reference {
            case .name(let name):
                text += "group.name \(comparison) "
                name.writeQuoted(to: &text)
            case .arn(let arn):
                text += "group.arn \(comparison) "
                arn.writeQuoted(to: &text)
            }
        }
    }

    private func writeEnclosed(by open: String, _ close: String, to text: inout String) {
        text += open
        write(to: &text)
        text += close
    }

    private func writeBody(to text: inout String) { writeEnclosed(by: " { ", " }", to: &text) }
}

extension FilterTest {
    fileprivate func write(to text: inout String) {
        text += keyword.spelling
        if case .annotation(_, let key) = keyword {
            if key.value.utf8.allSatisfy({ $0 < 0x80 }), isPlainKey(key.value) {
                text += "." + key.value
            } else {
                text += "["
                key.writeQuoted(to: &text)
                text += "]"
            }
        }
        guard case .compares(let comparison, let literal) = condition else { return }
        text += " \(comparison.rawValue) "
        switch literal {
        case .bool(let flag): text += flag ? "true" : "false"
        case .number(let number): text += numeral(number)
        case .string(let string): string.writeQuoted(to: &text)
        }
    }
}

extension NodeSelector {
    fileprivate func write(to text: inout String) {
        if let name, type == nil, accountID == nil {
            name.writeQuoted(to: &text)
            return
        }
        text += "id("
        var separator = ""
        for (part, value) in [("name", name), ("type", type), ("account.id", accountID)] {
            guard let value else { continue }
            text += "\(separator)\(part): "
            value.writeQuoted(to: &text)
            separator = ", "
        }
        text += ")"
    }
}

extension FilterJSON {
    fileprivate func write(to text: inout String) {
        switch self {
        case .null: text += "null"
        case .bool(let flag): text += flag ? "true" : "false"
        case .number(let number): text += numeral(number)
        case .string(let string): string.writeQuoted(to: &text)
        case .array(let elements):
            text += "["
            for (index, element) in elements.enumerated() {
                if index > 0 { text += "," }
                element.write(to: &text)
            }
            text += "]"
        case .object(let members):
            text += "{"
            for (index, member) in members.sorted(by: { $0.key < $1.key }).enumerated() {
                if index > 0 { text += "," }
                member.key.writeQuoted(to: &text)
                text += ":"
                member.value.write(to: &text)
            }
            text += "}"
        }
    }
}

extension ExactString {
    /// As a string of the language, which is a string of JSON.
    fileprivate func writeQuoted(to text: inout String) {
        text += "\""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\r": text += "\\r"
            case "\t": text += "\\t"
            case _ where scalar.value < 0x20:
                let digits = String(scalar.value, radix: 16)
                text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: text.unicodeScalars.append(scalar)
            }
        }
        text += "\""
    }
}

/// The shortest decimal that reads as this double.
private func numeral(_ number: Double) -> String {
    if number.magnitude < 1e15, let whole = Int64(exactly: number) { return String(whole) }
    return number.description
}
