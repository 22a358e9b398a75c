// Signed calls of the API for everything outside the load itself: read-back, probes, `verify`. One thread uses a client.

import Glibc
import Segments

public struct APIAnswer {
    public var status: Int
    public var body: [UInt8]
    /// `x-amzn-ErrorType`, errors only.
    public var errorName: String?
    /// `x-beamline-complete-to` as microseconds since 1970.
    public var completeTo: Micros?
}

public final class APIClient {
    private let connection: HTTPConnection
    private let signer: CallSigner
    private let head = OutputBuffer(capacity: 4096)

    public init(endpoint: Endpoint, credentials: SigningCredentials?, region: String) {
        connection = HTTPConnection(to: endpoint)
        signer = CallSigner(endpoint: endpoint, credentials: credentials, region: region)
    }

    /// One call, whatever its status.
    /// - Parameter fresh: ask the read to wait (bounded by the server) until it contains everything acknowledged.
    public func call(_ path: String, _ body: [UInt8], fresh: Bool = false) throws(LoadError) -> APIAnswer {
        let outcome: Result<APIAnswer, LoadError> = body.withUnsafeBytes { bytes in
            signer.writeHead(
                path: path, body: bytes, into: head, at: currentMicros(), extra: fresh ? "x-beamline-consistency: fresh\r\n" : "")
            return Result { () throws(LoadError) in
                let raw = try connection.exchange(head: head.bytes, body: bytes)
                return APIAnswer(
                    status: raw.status, body: Array(raw.body), errorName: raw.header("x-amzn-errortype"),
                    completeTo: raw.header("x-beamline-complete-to").flatMap(parseRFC3339))
            }
        }
        return try outcome.get()
    }

    /// One call that must succeed: throttled and unavailable answers and broken connections are tried again for a while.
    /// - Throws: `LoadError` with the operation's path, status and error text.
    public func read(_ path: String, _ body: [UInt8], fresh: Bool = false) throws(LoadError) -> APIAnswer {
        let giveUp = currentMicros() + 30_000_000
        while true {
            let outcome = Result { () throws(LoadError) in try call(path, body, fresh: fresh) }
            let failure: LoadError
            switch outcome {
            case .success(let answer) where answer.status == 200:
                return answer
            case .success(let answer):
                failure = LoadError("\(path) answered \(answer.status): \(String(decoding: answer.body, as: UTF8.self))")
                guard answer.status == 429 || answer.status == 503 else { throw failure }
            case .failure(let error):
                failure = error
            }
            guard currentMicros() < giveUp else { throw failure }
            sleepUntil(currentMicros() + 100_000)
        }
    }
}

/// `2024-05-01T12:00:00.123Z` (any number of decimals, UTC) as microseconds since 1970.
func parseRFC3339(_ text: String) -> Micros? {
    let bytes = Array(text.utf8)
    func number(_ range: Range<Int>) -> Int64? {
        guard range.upperBound <= bytes.count else { return nil }
        var value: Int64 = 0
        for byte in bytes[range] {
            guard byte >= 48, byte <= 57 else { return nil }
            value = value * 10 + Int64(byte - 48)
        }
        return value
    }
    guard let year = number(0..<4), let month = number(5..<7), let day = number(8..<10), let hour = number(11..<13),
        let minute = number(14..<16), let second = number(17..<19), (1...12).contains(month)
    else { return nil }
    // Days from civil, Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let shifted = month <= 2 ? year - 1 : year
    let era = shifted / 400
    let yearOfEra = shifted - era * 400
    let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
    let days = era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    var micros = ((days * 24 + hour) * 60 + minute) * 60 + second
    micros *= 1_000_000
    if bytes.count > 20, bytes[19] == 46 {
        var scale: Int64 = 100_000
        for byte in bytes[20...] {
            guard byte >= 48, byte <= 57 else { break }
            micros += Int64(byte - 48) * scale
            scale /= 10
        }
    }
    return micros
}

/// Waiting until reads contain everything.
public enum Completion {
    /// Polls until a read says it contains everything received up to `time`; nil after two minutes.
    /// The times are the server's, so a clock that differs from it by seconds makes this wrong by as much.
    public static func wait(until time: Micros, _ options: LoadOptions) -> Micros? {
        let client = APIClient(endpoint: options.endpoint, credentials: options.credentials, region: options.region)
        let giveUp = currentMicros() + 120_000_000
        let empty = Array(#"{"StartTime":0,"EndTime":1}"#.utf8)
        while currentMicros() < giveUp {
            if let answer = try? client.call("/ServiceGraph", empty), answer.status == 200, let reached = answer.completeTo,
                reached >= time
            {
                return currentMicros()
            }
            sleepUntil(currentMicros() + 20_000)
        }
        return nil
    }
}
