import Testing
import XRayAPI

@Suite struct TimestampTextTests {
    // If this fails, a client that writes times as text asks for another window than it means.
    @Test(arguments: [
        ("1700000000", 1_700_000_000_000_000),
        ("1700000000.123", 1_700_000_000_123_000),
        ("1.7e9", 1_700_000_000_000_000),
        ("0", 0),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000),
        ("2023-11-14T22:13:20.5Z", 1_700_000_000_500_000),
        ("2023-11-14T22:13:20.1234567Z", 1_700_000_000_123_456),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000_000_000),
        ("2023-11-14T20:43:20-0130", 1_700_000_000_000_000),
        ("2023-11-14t22:13:20z", 1_700_000_000_000_000),
        ("2023-11-14 22:13:20", 1_700_000_000_000_000),
        ("2023-11-14T22:13Z", 1_699_999_980_000_000),
        ("2023-11-14", 1_699_920_000_000_000),
        ("20231114T221320Z", 1_700_000_000_000_000),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000),
        ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000_000_000),
        ("Tue, 14 Nov 2023 17:13:20 EST", 1_700_000_000_000_000),
        ("14 Nov 2023 22:13:20 +0000", 1_700_000_000_000_000),
        ("Tue, 14 Nov 23 22:13 UT", 1_699_999_980_000_000),
        ("Tuesday, 14-Nov-23 22:13:20 GMT", 1_700_000_000_000_000),
    ])
    func `text forms of a time are read`(text: String, micros: Int64) {
        #expect(TimestampText.micros(of: text.utf8) == micros)
    }

    // If this fails, nonsense is taken for a time instead of being refused.
    @Test(arguments: [
        "", " ", "yesterday", "nan", "inf", "0x10", "+5", "--5", "2023-13-01", "2023-02-29", "2023-11-31",
        "2023-11-14T25:00:00Z",
        "2023-11-14T22:61:00Z", "2023-11-14T", "2023-11-14T22:13:20+", "2023-11-14T22:13:20Zx",
        "Tue, 14 Foo 2023 22:13:20 GMT",
        "Tue 14 Nov", "14 Nov 2023 22:13:20 XYZ", "2023-11-14T22:13:20.Z", ",", "éé", String(repeating: "1", count: 65),
    ])
    func `anything else is no time`(text: String) {
        #expect(TimestampText.micros(of: text.utf8) == nil)
    }

    // If this fails, the header says another time than the one the answer is complete to.
    @Test(
        arguments: [
            (1_700_000_000_125_999, "2023-11-14T22:13:20.125Z"), (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_399_999_999, "2000-02-28T23:59:59.999Z"), (951_782_400_000_000, "2000-02-29T00:00:00.000Z"),
            (253_402_300_799_000_000, "9999-12-31T23:59:59.000Z"),
        ] as [(Int64, String)])
    func `times are written as RFC 3339 and cut to milliseconds`(micros: Int64, text: String) {
        #expect(TimestampText.rfc3339(micros) == text)
        #expect(
            TimestampText.micros(of: text.utf8).map { $0 / 1000 } == (micros - (micros % 1000 + 1000) % 1000) / 1000)
    }
}
