// Decompresses gzip request bodies with zlib. A bomb is stopped at the limit: never more than `limit` bytes, plus one
// step of 64 KiB, are written.

import CZlib
import NIOCore

enum GzipError: Error, Equatable {
    /// Not gzip, damaged, cut short, or followed by something else.
    case malformed
    case tooLarge
    /// The budget for bodies in flight is used up.
    case noBudget
}

enum Gzip {
    private static let stepBytes = 64 << 10

    /// - Parameters:
    ///   - limit: most bytes of output.
    ///   - takeBudget: asked after each step, with the bytes it added (at most 64 KiB); false stops the work.
    static func decompress(
        _ body: ByteBuffer, limit: Int, takeBudget: (Int) -> Bool
    ) throws(GzipError) -> ByteBuffer {
        var stream = z_stream()
        guard czlib_inflate_init_gzip(&stream) == Z_OK else { throw .noBudget }
        defer { inflateEnd(&stream) }
        var output = ByteBuffer()
        let failure = body.withUnsafeReadableBytes { input -> GzipError? in
            // zlib only reads `next_in`; its type has no const for historical reasons.
            stream.next_in = UnsafeMutableRawPointer(mutating: input.baseAddress)?.assumingMemoryBound(to: UInt8.self)
            stream.avail_in = UInt32(input.count)
            while true {
                let step = min(stepBytes, limit - output.writerIndex + 1)
                let before = output.writerIndex
                var status = Z_OK
                output.writeWithUnsafeMutableBytes(minimumWritableBytes: step) { free in
                    stream.next_out = free.baseAddress?.assumingMemoryBound(to: UInt8.self)
                    stream.avail_out = UInt32(step)
                    status = inflate(&stream, Z_NO_FLUSH)
                    return step - Int(stream.avail_out)
                }
                if output.writerIndex > limit { return .tooLarge }
                guard takeBudget(output.writerIndex - before) else { return .noBudget }
                switch status {
                case Z_STREAM_END where stream.avail_in == 0:
                    return nil
                case Z_STREAM_END:
                    // A gzip file may consist of several members (RFC 1952 §2.2).
                    guard inflateReset(&stream) == Z_OK else { return .malformed }
                case Z_OK where stream.avail_out == 0 || stream.avail_in > 0:
                    continue
                default:
                    return .malformed
                }
            }
        }
        if let failure { throw failure }
        return output
    }
}
