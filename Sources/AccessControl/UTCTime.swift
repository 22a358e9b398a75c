// Times in the forms HTTP and SigV4 use, without Foundation: seconds since 1970 in and out.
// Called by signing and verification, and by the server for its `Date` header.

/// Conversions between seconds since 1970 and text, all in UTC and the proleptic Gregorian calendar.
public enum UTCTime {
    /// `20240501T120000Z`.
    public static func basic(_ seconds: Int64) -> String {
        let time = Civil(seconds)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(16)
        append(time.year, digits: 4, to: &bytes)
        append(time.month, digits: 2, to: &bytes)
        append(time.day, digits: 2, to: &bytes)
        bytes.append(UInt8(ascii: "T"))
        append(time.hour, digits: 2, to: &bytes)
        append(time.minute, digits: 2, to: &bytes)
        append(time.second, digits: 2, to: &bytes)
        bytes.append(UInt8(ascii: "Z"))
        return String(decoding: bytes, as: UTF8.self)
    }

    /// `Wed, 01 May 2024 12:00:00 GMT` (RFC 7231 §7.1.1.1).
    public static func httpDate(_ seconds: Int64) -> String {
        let time = Civil(seconds)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(29)
        bytes.append(contentsOf: weekdays[time.weekday].utf8)
        bytes.append(contentsOf: ", ".utf8)
        append(time.day, digits: 2, to: &bytes)
        bytes.append(UInt8(ascii: " "))
        bytes.append(contentsOf: months[time.month - 1].utf8)
        bytes.append(UInt8(ascii: " "))
        append(time.year, digits: 4, to: &bytes)
        for (separator, value) in [(" ", time.hour), (":", time.minute), (":", time.second)] {
            bytes.append(contentsOf: separator.utf8)
            append(value, digits: 2, to: &bytes)
        }
        bytes.append(contentsOf: " GMT".utf8)
        return String(decoding: bytes, as: UTF8.self)
    }

    /// Reads `20240501T120000Z`; nil for anything else, including days that do not exist.
    public static func parseBasic(_ text: some Collection<UInt8>) -> Int64? {
        let bytes = Array(text)
        guard bytes.count == 16, bytes[8] == UInt8(ascii: "T"), bytes[15] == UInt8(ascii: "Z"),
            let year = number(bytes[0..<4]), let month = number(bytes[4..<6]), let day = number(bytes[6..<8]),
            let hour = number(bytes[9..<11]), let minute = number(bytes[11..<13]), let second = number(bytes[13..<15])
        else { return nil }
        return Civil(year: year, month: month, day: day, hour: hour, minute: minute, second: second)?.seconds
    }

    /// Reads `Wed, 01 May 2024 12:00:00 GMT` (RFC 1123); the name of the day is not checked against the date.
    public static func parseHTTPDate(_ text: some Collection<UInt8>) -> Int64? {
        let bytes = Array(text)
        guard bytes.count == 29, bytes[3] == UInt8(ascii: ","), bytes[4] == UInt8(ascii: " "),
            bytes[7] == UInt8(ascii: " "),
            bytes[11] == UInt8(ascii: " "), bytes[16] == UInt8(ascii: " "), bytes[19] == UInt8(ascii: ":"),
            bytes[22] == UInt8(ascii: ":"), bytes[25...].elementsEqual(" GMT".utf8),
            let month = months.firstIndex(where: { $0.utf8.elementsEqual(bytes[8..<11]) }),
            let day = number(bytes[5..<7]), let year = number(bytes[12..<16]),
            let hour = number(bytes[17..<19]), let minute = number(bytes[20..<22]), let second = number(bytes[23..<25])
        else { return nil }
        return Civil(year: year, month: month + 1, day: day, hour: hour, minute: minute, second: second)?.seconds
    }

    private static let weekdays = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]
    private static let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]

    private static func append(_ value: Int, digits: Int, to bytes: inout [UInt8]) {
        var divisor = 1
        for _ in 1..<digits { divisor *= 10 }
        while divisor > 0 {
            bytes.append(UInt8(ascii: "0") + UInt8(value / divisor % 10))
            divisor /= 10
        }
    }

    private static func number(_ digits: ArraySlice<UInt8>) -> Int? {
        var value = 0
        for digit in digits {
            guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(digit) else { return nil }
            value = value * 10 + Int(digit - UInt8(ascii: "0"))
        }
        return value
    }
}

/// A moment split into calendar fields. The day arithmetic is Howard Hinnant's `days_from_civil`/`civil_from_days`
/// (https://howardhinnant.github.io/date_algorithms.html).
private struct Civil {
    var year: Int
    var month: Int
    var day: Int
    var hour: Int
    var minute: Int
    var second: Int
    var days: Int

    var weekday: Int { ((days % 7) + 11) % 7 }
    var seconds: Int64 { Int64(days) * 86_400 + Int64(hour * 3600 + minute * 60 + second) }

    /// Years outside 0...9999 are clamped: the text forms have four digits.
    init(_ seconds: Int64) {
        let clamped = min(max(seconds, -62_167_219_200), 253_402_300_799)
        let day = clamped >= 0 ? clamped / 86_400 : -((-clamped + 86_399) / 86_400)
        let rest = Int(clamped - day * 86_400)
        days = Int(day)
        hour = rest / 3600
        minute = rest / 60 % 60
        second = rest % 60

        let shifted = days + 719_468
        let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
        let dayOfEra = shifted - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shiftedMonth = (5 * dayOfYear + 2) / 153
        self.day = dayOfYear - (153 * shiftedMonth + 2) / 5 + 1
        month = shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9
        year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
    }

    /// A leap second (`:60`) counts as the first second of the next minute, as POSIX time does.
    init?(year: Int, month: Int, day: Int, hour: Int, minute: Int, second: Int) {
        guard (1...12).contains(month), day >= 1, hour < 24, minute < 60, second <= 60 else { return nil }
        let isLeap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
        let lengths = [31, isLeap ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        guard day <= lengths[month - 1] else { return nil }
        self.year = year
        self.month = month
        self.day = day
        self.hour = hour
        self.minute = minute
        self.second = second

        let shiftedYear = month <= 2 ? year - 1 : year
        let era = (shiftedYear >= 0 ? shiftedYear : shiftedYear - 399) / 400
        let yearOfEra = shiftedYear - era * 400
        let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
        days = era * 146_097 + dayOfEra - 719_468
    }
}
