// Writes the head of a call: request line, headers and signature. One thread uses a signer.

import AccessControl
import Crypto
import Segments

final class CallSigner {
    private let endpoint: Endpoint
    private let signer: RequestSigner?

    /// - Parameter credentials: nil sends calls unsigned.
    init(endpoint: Endpoint, credentials: SigningCredentials?, region: String) {
        self.endpoint = endpoint
        signer = credentials.map {
            RequestSigner(
                accessKeyID: $0.accessKeyID, secret: SecretKey($0.secretAccessKey), region: region, sessionToken: $0.sessionToken)
        }
    }

    /// Replaces the contents of `head` with the whole head for `body`, the empty line included.
    /// - Parameter extra: further header lines, each ending with CR LF; not signed.
    func writeHead(path: String, body: UnsafeRawBufferPointer, into head: OutputBuffer, at now: Micros, extra: String = "") {
        let target = endpoint.pathPrefix + path
        head.removeAll()
        head.append("POST ")
        head.append(target)
        head.append(" HTTP/1.1\r\nHost: ")
        head.append(endpoint.authority)
        head.append("\r\nContent-Type: application/json\r\nContent-Length: \(body.count)\r\n")
        head.append(extra)
        if let signer {
            var hash = SHA256()
            hash.update(bufferPointer: body)
            let signed = signer.headers(
                target: target, host: endpoint.authority, headers: [("Content-Type", "application/json")],
                bodyHash: hash.finalize(), now: now)
            for field in signed {
                head.append(field.name)
                head.append(": ")
                head.append(field.value)
                head.append("\r\n")
            }
        }
        head.append("\r\n")
    }
}
