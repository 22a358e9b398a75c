// The rows one statement gave, in binary. Read by whoever called; the memory is libpq's and lives as long as this object.

import CPostgreSQL

/// Unchecked: a PGresult is never changed after libpq handed it out and may be read from any thread
/// (PostgreSQL manual, "Behavior in Threaded Programs"); this object owns it and clears it at its end.
public final class PostgresResult: @unchecked Sendable {
    private let raw: OpaquePointer

    init(owning raw: OpaquePointer) { self.raw = raw }

    deinit { PQclear(raw) }

    public var rowCount: Int { Int(PQntuples(raw)) }

    /// Rows that an INSERT, UPDATE or DELETE touched.
    public var affectedRows: Int {
        guard let text = PQcmdTuples(raw) else { return 0 }
        return Int(String(cString: text)) ?? 0
    }

    public func isNull(_ row: Int, _ column: Int) -> Bool { PQgetisnull(raw, Int32(row), Int32(column)) == 1 }

    /// The value's bytes; valid as long as this result.
    @inline(__always)
    private func buffer(_ row: Int, _ column: Int) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(
            start: PQgetvalue(raw, Int32(row), Int32(column)), count: Int(PQgetlength(raw, Int32(row), Int32(column))))
    }

    public func withBytes<R, E: Error>(
        _ row: Int, _ column: Int, _ body: (UnsafeRawBufferPointer) throws(E) -> R
    ) throws(E) -> R {
        let result = try body(buffer(row, column))
        return withExtendedLifetime(self) { result }
    }

    public func bytes(_ row: Int, _ column: Int) -> [UInt8] { withBytes(row, column) { Array($0) } }

    public func text(_ row: Int, _ column: Int) -> String {
        withBytes(row, column) { String(decoding: $0, as: UTF8.self) }
    }

    /// An int2, int4, int8 or bool column; NULL is 0.
    public func int(_ row: Int, _ column: Int) -> Int64 {
        withBytes(row, column) {
            switch $0.count {
            case 8: Int64(bigEndian: $0.loadUnaligned(as: Int64.self))
            case 4: Int64(Int32(bigEndian: $0.loadUnaligned(as: Int32.self)))
            case 2: Int64(Int16(bigEndian: $0.loadUnaligned(as: Int16.self)))
            case 1: Int64($0[0])
            default: 0
            }
        }
    }

    public func optionalInt(_ row: Int, _ column: Int) -> Int64? { isNull(row, column) ? nil : int(row, column) }

    public func bool(_ row: Int, _ column: Int) -> Bool { int(row, column) != 0 }

    /// A uuid column as two words; NULL is zero.
    public func uuid(_ row: Int, _ column: Int) -> (high: UInt64, low: UInt64) {
        withBytes(row, column) {
            guard $0.count == 16 else { return (0, 0) }
            return (
                UInt64(bigEndian: $0.loadUnaligned(as: UInt64.self)),
                UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
            )
        }
    }
}
