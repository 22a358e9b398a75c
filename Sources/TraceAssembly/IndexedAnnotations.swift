// The annotations a trace can be searched by (`segments.md` §11, ruling R-10): its first 50 distinct pairs.
// In: a forest. Out: who carries which of them. Callers: summaries and filter expressions.

import Segments

/// A value as it is indexed; equal only to a value of the same type with the same code points or the same number.
public enum IndexedValue: Hashable, Sendable {
    /// At most the first 1,000 code points of what was sent.
    case string(ExactString)
    case number(Double)
    case bool(Bool)

    public init(_ value: AnnotationValue) {
        switch value {
        case .string(let text): self = .string(ExactString(IndexedValue.indexed(text)))
        case .number(let number): self = .number(number)
        case .bool(let flag): self = .bool(flag)
        }
    }

    public static let indexedCodePoints = 1_000

    private static func indexed(_ text: String) -> String {
        // A code point has at least one byte.
        guard text.utf8.count > indexedCodePoints else { return text }
        return String(text.unicodeScalars.prefix(indexedCodePoints))
    }
}

/// One attached entity carrying one indexed pair.
public struct IndexedAnnotation: Sendable {
    /// Index into `trace.entities`.
    public var entity: Int32
    public var key: ExactString
    public var value: IndexedValue
}

extension Forest {
    public static let indexedPairsPerTrace = 50

    /// Carriers of the trace's first 50 distinct pairs, by first sight of the entity, then document order.
    /// Unattached entities carry nothing and use up nothing.
    public func indexedAnnotations() -> [IndexedAnnotation] {
        struct Pair: Hashable {
            var key: ExactString
            var value: IndexedValue
        }
        var pairs: Set<Pair> = []
        var result: [IndexedAnnotation] = []
        for index in 0..<count where isAttached(Int32(index)) && !trace.entities[index].entity.annotations.isEmpty {
            for annotation in trace.entities[index].entity.annotations {
                let pair = Pair(key: ExactString(annotation.key), value: IndexedValue(annotation.value))
                if !pairs.contains(pair) {
                    guard pairs.count < Forest.indexedPairsPerTrace else { continue }
                    pairs.insert(pair)
                }
                result.append(IndexedAnnotation(entity: Int32(index), key: pair.key, value: pair.value))
            }
        }
        return result
    }
}
