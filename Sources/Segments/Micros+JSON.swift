// Epoch seconds of a document (a JSON number) to integer microseconds, rounded half up (`segments.md` §2).

/// The largest time the system computes with, either side of 1970: any difference of two such times fits in 64 bits.
/// It is far beyond seconds mistaken for milliseconds (year 146,000).
let representableMicros: Double = 4_611_686_018_427_387_904

/// Seconds since 1970 to microseconds, half up; nil when the result is beyond ±2^62 µs.
///
/// The whole seconds and the fraction are converted apart, so nothing is lost to the multiplication. A double near
/// 1.7e9 is itself up to 0.12 µs off the decimal that was sent; where that decides the rounding, the decimal that
/// decides is the shortest one that reads as this double, which is what SDKs print.
public func micros(fromSeconds seconds: Double) -> Micros? {
    guard seconds.magnitude < representableMicros / 1e6 else { return nil }
    let whole = seconds.rounded(.down)
    let fraction = (seconds - whole) * 1e6
    let floor = fraction.rounded(.down)
    var micros = Int64(whole) * 1_000_000 + Int64(floor)
    let rest = fraction - floor
    if abs(rest - 0.5) > seconds.ulp * 0.5e6 + 1e-9 {
        if rest > 0.5 { micros += 1 }
    } else if isHalfOrMore(ofDecimal: seconds) ?? (rest >= 0.5) {
        micros += 1
    }
    return micros
}

/// Whether the 7th decimal of the shortest decimal form is 5 or more; nil in scientific notation or for negative
/// numbers, whose digits count the other way.
private func isHalfOrMore(ofDecimal value: Double) -> Bool? {
    guard value >= 0 else { return nil }
    let text = value.description.utf8
    guard !text.contains(UInt8(ascii: "e")), let point = text.firstIndex(of: UInt8(ascii: ".")) else { return nil }
    guard let seventh = text.index(point, offsetBy: 7, limitedBy: text.endIndex), seventh != text.endIndex else {
        return nil
    }
    return text[seventh] >= UInt8(ascii: "5")
}
