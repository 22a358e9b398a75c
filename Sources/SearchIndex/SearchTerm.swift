// What a trace can be found by, as numbers: a term is a 40-bit hash of a field and a value. Two values may share a term,
// so terms only say which traces to look at, never what a trace is. The same in every process and for ever: terms are
// stored.

import Segments

/// A field and a value, or a field alone ("some value is set").
public struct SearchTerm: Hashable, Sendable, Comparable {
    public static let bits = 40

    /// Below 2^40.
    public let rawValue: UInt64

    init(hash: UInt64) { rawValue = hash >> 24 }

    public static func < (a: SearchTerm, b: SearchTerm) -> Bool { a.rawValue < b.rawValue }
}

/// A field of a trace: the start of the hash of its values.
public struct SearchField: Hashable, Sendable {
    /// Numbers are stored as part of every term: never reuse one.
    enum Kind: UInt64 {
        case user = 1, zone, instanceID, resourceARN, accountID
        case url, method, userAgent, clientIP, status
        case nodeName, nodeType
        case nodeFault, nodeError, nodeThrottle
        case edge, edgeFault, edgeError, edgeThrottle
        case annotation, annotationText, annotationNumber, annotationRange, annotationFlag
        case causeService, causeEntity, causeException
        case urlDigits
    }

    let seed: UInt64

    init(_ kind: Kind) { seed = Hash.mix(0x6265_616d_6c69_6e65 ^ kind.rawValue) }

    /// A field of its own for each key.
    init(_ kind: Kind, key: String) { seed = Hash.of(key, seed: SearchField(kind).seed) }

    /// Some value of the field is set.
    var presence: SearchTerm { SearchTerm(hash: seed) }

    func term(_ value: String) -> SearchTerm { SearchTerm(hash: Hash.of(value, seed: seed)) }
    func term(_ value: Double) -> SearchTerm { SearchTerm(hash: Hash.of(value, seed: seed)) }
    func term(_ value: Bool) -> SearchTerm { SearchTerm(hash: Hash.mix(seed &+ (value ? 1 : 2))) }
    func term(_ first: String, _ second: String) -> SearchTerm {
        SearchTerm(hash: Hash.of(second, seed: Hash.of(first, seed: seed)))
    }
}

/// 64-bit hashes of short texts: eight bytes a step, no allocation.
enum Hash {
    @inline(__always)
    static func mix(_ value: UInt64) -> UInt64 {
        var x = value
        x = (x ^ (x >> 33)) &* 0xFF51_AFD7_ED55_8CCD
        x = (x ^ (x >> 33)) &* 0xC4CE_B9FE_1A85_EC53
        return x ^ (x >> 33)
    }

    static func of(_ bytes: UnsafeRawBufferPointer, seed: UInt64) -> UInt64 {
        var hash = seed &+ UInt64(truncatingIfNeeded: bytes.count) &* 0x9E37_79B9_7F4A_7C15
        var offset = 0
        while offset + 8 <= bytes.count {
            hash = mix(hash ^ UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self)))
            offset += 8
        }
        var tail: UInt64 = 0
        while offset < bytes.count {
            tail = tail << 8 | UInt64(bytes[offset])
            offset += 1
        }
        return mix(hash ^ tail)
    }

    static func of(_ text: String, seed: UInt64) -> UInt64 {
        var text = text
        return text.withUTF8 { of(UnsafeRawBufferPointer($0), seed: seed) }
    }

    /// Equal doubles have equal hashes: -0 is 0.
    static func of(_ number: Double, seed: UInt64) -> UInt64 { mix(seed ^ mix((number + 0).bitPattern)) }
}

/// Text with every run of ASCII digits replaced by one `0`. If a text contains (begins with, ends with) a part, its
/// template contains the part's template, so a dictionary of templates answers for any number of ids in URLs.
enum TextTemplate {
    @inline(__always)
    static func isDigit(_ byte: UInt8) -> Bool { byte &- 0x30 < 10 }

    /// - Returns: false when the template is the text itself; `out` is then unspecified.
    static func make(_ text: UnsafeRawBufferPointer, into out: inout [UInt8]) -> Bool {
        out.removeAll(keepingCapacity: true)
        guard let first = text.firstIndex(where: { isDigit($0) }) else { return false }
        out.append(contentsOf: text[..<first])
        var isInRun = false
        for byte in text[first...] {
            if isDigit(byte) {
                if !isInRun { out.append(0x30) }
                isInRun = true
            } else {
                out.append(byte)
                isInRun = false
            }
        }
        return true
    }

    /// Calls `body` with every three digits in a row, as a number: ids in URLs are told apart by these.
    static func forEachThreeDigits(_ text: UnsafeRawBufferPointer, _ body: (Int) -> Void) {
        var run = 0
        var number = 0
        for byte in text {
            guard isDigit(byte) else {
                (run, number) = (0, 0)
                continue
            }
            number = (number * 10 + Int(byte &- 0x30)) % 1000
            run += 1
            if run >= 3 { body(number) }
        }
    }

    static func of(_ text: String) -> [UInt8] {
        var out: [UInt8] = []
        let bytes = Array(text.utf8)
        return bytes.withUnsafeBytes { make($0, into: &out) } ? out : bytes
    }
}

/// The times of a trace in 255 steps, eight to an octave, for searches by range; 0 = not set.
enum TimeStep {
    /// - Parameter millis: rounded, as filters compare them; not negative.
    static func of(millis: Int64) -> UInt8 {
        if millis < 8 { return UInt8(1 + max(0, millis)) }
        let exponent = 63 - millis.leadingZeroBitCount
        let mantissa = Int(millis >> (exponent - 3)) & 7
        return UInt8(min(9 + (exponent - 3) * 8 + mantissa, 255))
    }
}

/// Steps of numbers, sixteen to an octave, for searches by range.
enum NumberRange {
    /// All numbers of a step, first and last.
    static func around(_ number: Double) -> (first: Double, last: Double) {
        let number = number + 0
        let low = number.bitPattern & ~0x0000_FFFF_FFFF_FFFF
        let high = low | 0x0000_FFFF_FFFF_FFFF
        let (near, far) = (Double(bitPattern: low), Double(bitPattern: high))
        return number.sign == .minus ? (far, near) : (near, far)
    }
}

/// What is true or false of a trace; kept exactly, so it can be searched for both ways.
public enum SearchFlag: Int, Sendable, CaseIterable {
    /// Outcome of the root.
    case fault, error, throttle, ok
    case partial, inferred
    /// Set for the root.
    case url, method, userAgent, clientIP, status
    /// Set for any segment.
    case user
    /// Some attached entity has the raw flag: there may be root causes.
    case faultFlag, errorFlag

    var bit: UInt16 { 1 << UInt16(rawValue) }
    public static let slots = 16
}
