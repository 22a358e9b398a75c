// Parsers to borrow for the length of one synchronous call. A parser is costly to make and must not be used by two
// tasks at once; the pool keeps as many as were ever in use together, which is the number of threads.

import JSONText
import Segments
import Synchronization

final class ParserPool: Sendable {
    /// The two parsers a request needs at the same time: documents are views into the envelope's buffer.
    // Sent between threads only through the pool's lock, and used by one borrower at a time.
    final class Parsers: @unchecked Sendable {
        let envelope = JSONParser()
        let documents: SegmentParser

        init(limits: SegmentLimits) { documents = SegmentParser(limits: limits) }
    }

    private let limits: SegmentLimits
    private let idle = Mutex<[Parsers]>([])

    init(limits: SegmentLimits) { self.limits = limits }

    func withParsers<Result, Failure: Error>(_ body: (Parsers) throws(Failure) -> Result) throws(Failure) -> Result {
        let parsers = idle.withLock { $0.popLast() } ?? Parsers(limits: limits)
        defer {
            parsers.envelope.trim(above: 4 << 20)
            idle.withLock { $0.append(parsers) }
        }
        return try body(parsers)
    }
}

extension JSONParser {
    /// Gives back the buffers of a body of many megabytes, keeps those of ordinary ones.
    fileprivate func trim(above bytes: Int) {
        if retainedBytes > bytes { trim() }
    }
}
