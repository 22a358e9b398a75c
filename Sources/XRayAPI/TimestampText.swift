// Timestamps as clients write them, to microseconds (`api.md` §1.2): a JSON number is read by `RequestMembers`; this file
// reads the text forms: a number, ISO 8601, RFC 822 (RFC 1123). No Foundation: date formatters cost microseconds and
// read more than the forms promised.

import Segments

/// Text forms of a timestamp and of the answers' own times.
public enum TimestampText {
    /// Seconds since 1970 that the API takes: up to the end of the year 9999.
    public static let validSeconds: ClosedRange<Int64> = 0...253_402_300_799

    /// Reads a number of seconds, an ISO 8601 date or an RFC 822 date; nil for anything else.
    /// Digits below a microsecond are cut. The result may lie outside `validSeconds`.
    public static func micros(of text: some Collection<UInt8>) -> Micros? {
        var bytes = Array(text.prefix(65))
        guard bytes.count <= 64 else { return nil }
        while bytes.last == UInt8(ascii: " ") { bytes.removeLast() }
        guard !bytes.isEmpty else { return nil }
        return number(bytes) ?? iso8601(bytes) ?? rfc822(bytes)
    }

    /// RFC 3339 in UTC with milliseconds, as in `x-beamline-complete-to`: `2023-11-14T22:13:20.125Z`. Cut, not rounded:
    /// the answer must not claim to be more complete than it is.
    public static func rfc3339(_ time: Micros) -> String {
        let millis = floorDivide(time, 1000)
        let seconds = floorDivide(millis, 1000)
        let days = floorDivide(seconds, 86_400)
        let secondOfDay = seconds - days * 86_400
        let (year, month, day) = civil(fromDays: days)
        return padded(year, 4) + "-" + padded(month, 2) + "-" + padded(day, 2) + "T"
            + padded(secondOfDay / 3600, 2) + ":" + padded(secondOfDay / 60 % 60, 2) + ":" + padded(secondOfDay % 60, 2)
            + "." + padded(millis - seconds * 1000, 3) + "Z"
    }

    // MARK: - The forms

    private static func number(_ bytes: [UInt8]) -> Micros? {
        // `Double(String)` would also take "nan", "inf", "0x10" and a leading "+".
        let allowed = bytes.allSatisfy { isDigit($0) || [0x2d, 0x2b, 0x2e, 0x45, 0x65].contains($0) }
        guard allowed, let first = bytes.first, isDigit(first) || first == UInt8(ascii: "-"),
            let seconds = Double(String(decoding: bytes, as: UTF8.self))
        else { return nil }
        return seconds.isFinite ? Segments.micros(fromSeconds: seconds) ?? .max : .max
    }

    /// `2024-05-01`, `2024-05-01T12:00:00Z`, `…12:00:00.123+02:00`, `20240501T120000Z`; no zone means UTC.
    private static func iso8601(_ bytes: [UInt8]) -> Micros? {
        var scanner = Scanner(bytes)
        guard let year = scanner.digits(4) else { return nil }
        let isExtended = scanner.take("-")
        guard let month = scanner.digits(2), !isExtended || scanner.take("-"), let day = scanner.digits(2) else {
            return nil
        }
        var secondOfDay: Int64 = 0
        var fraction: Int64 = 0
        var offset: Int64 = 0
        if !scanner.isAtEnd {
            guard scanner.take("T") || scanner.take("t") || scanner.take(" ") else { return nil }
            guard let hour = scanner.digits(2), !isExtended || scanner.take(":"), let minute = scanner.digits(2) else {
                return nil
            }
            var second: Int64 = 0
            let secondsFollow = isExtended ? scanner.take(":") : scanner.peekIsDigit
            if secondsFollow {
                guard let value = scanner.digits(2) else { return nil }
                second = value
                if scanner.take(".") || scanner.take(",") {
                    guard let micros = scanner.fraction() else { return nil }
                    fraction = micros
                }
            }
            guard hour < 24, minute < 60, second <= 60 else { return nil }
            secondOfDay = hour * 3600 + minute * 60 + min(second, 59)
            if !(scanner.isAtEnd || scanner.take("Z") || scanner.take("z")) {
                guard let zone = scanner.numericZone() else { return nil }
                offset = zone
            }
        }
        guard scanner.isAtEnd else { return nil }
        return time(year, month, day, secondOfDay - offset, fraction)
    }

    /// `Wed, 01 May 2024 12:00:00 GMT`, weekday and seconds optional, zones as RFC 822 §5.1, two-digit years as RFC 2822.
    private static func rfc822(_ bytes: [UInt8]) -> Micros? {
        var scanner = Scanner(bytes)
        if let comma = bytes.firstIndex(of: UInt8(ascii: ",")) {
            guard comma >= 3, let weekday = scanner.word(), weekdays.contains(where: { weekday.hasPrefix($0) }) else {
                return nil
            }
            guard scanner.take(",") else { return nil }
        }
        scanner.skipSpaces()
        guard let day = scanner.digits(1, 2) else { return nil }
        guard scanner.take(" ") || scanner.take("-"), let monthName = scanner.word(),
            let month = months.firstIndex(of: String(monthName.prefix(3)))
        else { return nil }
        guard scanner.take(" ") || scanner.take("-"), var year = scanner.digits(2, 4) else { return nil }
        if year < 50 { year += 2000 } else if year < 1000 { year += 1900 }
        scanner.skipSpaces()
        guard let hour = scanner.digits(1, 2), scanner.take(":"), let minute = scanner.digits(2) else { return nil }
        var second: Int64 = 0
        if scanner.take(":") {
            guard let value = scanner.digits(2) else { return nil }
            second = value
        }
        guard hour < 24, minute < 60, second <= 60 else { return nil }
        scanner.skipSpaces()
        var offset: Int64 = 0
        if !scanner.isAtEnd {
            if let name = scanner.word() {
                guard let hours = zones[name] else { return nil }
                offset = hours * 3600
            } else {
                guard let zone = scanner.numericZone() else { return nil }
                offset = zone
            }
        }
        guard scanner.isAtEnd else { return nil }
        return time(year, Int64(month) + 1, day, hour * 3600 + minute * 60 + min(second, 59) - offset, 0)
    }

    private static let weekdays = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    private static let months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    private static let zones: [String: Int64] = [
        "gmt": 0, "utc": 0, "ut": 0, "z": 0, "est": -5, "edt": -4, "cst": -6, "cdt": -5, "mst": -7, "mdt": -6,
        "pst": -8, "pdt": -7,
    ]

    // MARK: - Calendar

    private static func time(_ year: Int64, _ month: Int64, _ day: Int64, _ secondOfDay: Int64, _ fraction: Int64)
        -> Micros?
    {
        guard (1...12).contains(month), day >= 1, day <= daysInMonth(year, month) else { return nil }
        return (days(fromCivil: year, month, day) * 86_400 + secondOfDay) * 1_000_000 + fraction
    }

    private static func daysInMonth(_ year: Int64, _ month: Int64) -> Int64 {
        let isLeapYear = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
        return [31, isLeapYear ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][Int(month) - 1]
    }

    /// Days since 1970-01-01 in the proleptic Gregorian calendar. Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    private static func days(fromCivil year: Int64, _ month: Int64, _ day: Int64) -> Int64 {
        let y = month <= 2 ? year - 1 : year
        let era = floorDivide(y, 400)
        let yearOfEra = y - era * 400
        let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
        return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    }

    private static func civil(fromDays days: Int64) -> (year: Int64, month: Int64, day: Int64) {
        let z = days + 719_468
        let era = floorDivide(z, 146_097)
        let dayOfEra = z - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shifted = (5 * dayOfYear + 2) / 153
        let month = shifted < 10 ? shifted + 3 : shifted - 9
        return (yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, dayOfYear - (153 * shifted + 2) / 5 + 1)
    }

    private static func padded(_ value: Int64, _ width: Int) -> String {
        let digits = String(value)
        return String(repeating: "0", count: max(0, width - digits.utf8.count)) + digits
    }

    fileprivate static func isDigit(_ byte: UInt8) -> Bool { byte >= 0x30 && byte <= 0x39 }
}

/// The largest integer not above a/b; b > 0.
@inline(__always)
package func floorDivide(_ a: Int64, _ b: Int64) -> Int64 {
    let quotient = a / b
    return a % b < 0 ? quotient - 1 : quotient
}

/// Walks over the bytes of one date.
private struct Scanner {
    private let bytes: [UInt8]
    private var index = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    var isAtEnd: Bool { index == bytes.count }
    var peekIsDigit: Bool { index < bytes.count && TimestampText.isDigit(bytes[index]) }

    mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard index < bytes.count, bytes[index] == UInt8(ascii: character) else { return false }
        index += 1
        return true
    }

    mutating func skipSpaces() { while take(" ") {} }

    mutating func digits(_ count: Int) -> Int64? { digits(count, count) }

    mutating func digits(_ least: Int, _ most: Int) -> Int64? {
        var value: Int64 = 0
        var count = 0
        while count < most, peekIsDigit {
            value = value * 10 + Int64(bytes[index] - 0x30)
            index += 1
            count += 1
        }
        return count >= least ? value : nil
    }

    /// Digits after the point as microseconds; further ones are cut.
    mutating func fraction() -> Int64? {
        guard peekIsDigit else { return nil }
        var value: Int64 = 0
        var scale: Int64 = 100_000
        while peekIsDigit {
            value += Int64(bytes[index] - 0x30) * scale
            scale /= 10
            index += 1
        }
        return value
    }

    /// Letters in lower case; nil when none.
    mutating func word() -> String? {
        var letters: [UInt8] = []
        while index < bytes.count {
            let lower = bytes[index] | 0x20
            guard lower >= 0x61, lower <= 0x7a else { break }
            letters.append(lower)
            index += 1
        }
        return letters.isEmpty ? nil : String(decoding: letters, as: UTF8.self)
    }

    /// `+hh`, `+hhmm`, `+hh:mm` as seconds east of UTC.
    mutating func numericZone() -> Int64? {
        let isEast = take("+")
        guard isEast || take("-"), let hours = digits(2) else { return nil }
        var minutes: Int64 = 0
        if take(":") || peekIsDigit {
            guard let value = digits(2) else { return nil }
            minutes = value
        }
        guard hours < 24, minutes < 60 else { return nil }
        return (isEast ? 1 : -1) * (hours * 3600 + minutes * 60)
    }
}
