// Request ids (UUID version 4 in text) and the `Date` header, both made once per response and therefore without
// Foundation.

import AccessControl
import Synchronization

/// Makes request ids. They need to be distinct, not secret: a seeded SplitMix64 sequence, one atomic addition each.
final class RequestIDGenerator: Sendable {
    private let state: Atomic<UInt64>

    init() { state = Atomic(UInt64.random(in: .min ... .max)) }

    func next() -> String {
        let increment: UInt64 = 0x9E37_79B9_7F4A_7C15
        let first = state.wrappingAdd(2 &* increment, ordering: .relaxed).newValue
        let high = Self.mixed(first) & ~0xF000 | 0x4000
        let low = Self.mixed(first &+ increment) & ~(0b11 << 62) | 0b10 << 62
        return String(unsafeUninitializedCapacity: 36) { text in
            var position = 0
            for index in 0..<32 {
                if index == 8 || index == 12 || index == 16 || index == 20 {
                    text[position] = UInt8(ascii: "-")
                    position += 1
                }
                let half = index < 16 ? high : low
                let digit = UInt8(truncatingIfNeeded: half >> UInt64(60 - 4 * (index & 15))) & 15
                text[position] = digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10
                position += 1
            }
            return position
        }
    }

    private static func mixed(_ value: UInt64) -> UInt64 {
        var z = value
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// The text of the current second, made once per second. SDKs correct their clocks by it.
final class DateHeader: Sendable {
    private let current = Mutex<(second: Int64, text: String)>((.min, ""))

    func text(second: Int64) -> String {
        current.withLock { current in
            if current.second != second { current = (second, UTCTime.httpDate(second)) }
            return current.text
        }
    }
}
