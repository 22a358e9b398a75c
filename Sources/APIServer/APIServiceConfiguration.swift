// The settings of the HTTP server, each with its default and unit.

import AccessControl
import Segments

/// Settings of `APIService`.
public struct APIServiceConfiguration: Sendable {
    public var host: String
    /// 0 lets the system choose (tests); the chosen one is passed to `onListening`.
    public var port: Int
    /// Nil: plain HTTP/1.1. With files: TLS only, HTTP/2 and HTTP/1.1.
    public var tls: TLSFiles?
    public var authentication: AuthenticationSettings
    /// `xray.example.test`: then `210987654321.xray.example.test` names account 210987654321. Nil turns that off.
    public var hostSuffix: String?
    /// Web pages of these origins (`https://console.example.com`) may call the API from a browser. None: no CORS at all.
    public var allowedOrigins: [String]
    public var limits: Limits
    public var timeouts: Timeouts
    /// Rate limits per class and account; a class without one is not limited.
    public var rateLimits: [OperationClass: RateLimit]
    /// Microseconds since 1970.
    public var clock: @Sendable () -> Micros

    public struct Limits: Sendable {
        /// Largest body on the wire, in bytes.
        public var bodyBytes = 8 << 20
        /// Largest body after decompression, in bytes.
        public var decompressedBodyBytes = 16 << 20
        /// Bytes of all bodies that are being read or worked on; beyond it requests are answered 503.
        public var bytesInFlight = 256 << 20
        /// One header field or the request target, in bytes.
        public var headerFieldBytes = 16 << 10
        /// All header fields of a request, in bytes.
        public var headerBytes = 64 << 10
        public var headerCount = 128
        /// Connections beyond it wait in the listen queue. Lowered to what the process may open in files.
        public var connections = 16_384
        /// Requests at once on one HTTP/2 connection.
        public var streamsPerConnection = 256

        public init() {}
    }

    public struct Timeouts: Sendable {
        /// From accepting a TLS connection to the end of its handshake.
        public var handshakeSeconds = 10.0
        /// From the first byte of a request to its last; later: 408.
        public var requestSeconds = 20.0
        /// A connection without a request is closed after it.
        public var idleSeconds = 75.0
        /// A client that does not take its answer is cut off after it.
        public var responseSeconds = 120.0
        /// How long a connection whose request was refused early still reads, so that the client gets the answer.
        public var lingerSeconds = 2.0
        /// How long running requests may take once the server stops.
        public var drainSeconds = 5.0

        public init() {}
    }

    /// A token bucket. Source: `api.md` §1.5.
    public struct RateLimit: Sendable {
        /// Units per second; 0 = no limit.
        public var rate: Double
        /// Units that may be taken at once.
        public var burst: Double

        public init(rate: Double, burst: Double) {
            self.rate = rate
            self.burst = burst
        }
    }

    public init(
        host: String = "127.0.0.1", port: Int = 2000, tls: TLSFiles? = nil,
        authentication: AuthenticationSettings = AuthenticationSettings(),
        hostSuffix: String? = nil, allowedOrigins: [String] = [], limits: Limits = Limits(), timeouts: Timeouts = Timeouts(),
        rateLimits: [OperationClass: RateLimit] = [:],
        clock: @escaping @Sendable () -> Micros = { SystemClock.now() }
    ) {
        self.host = host
        self.port = port
        self.tls = tls
        self.authentication = authentication
        self.hostSuffix = hostSuffix
        self.allowedOrigins = allowedOrigins
        self.limits = limits
        self.timeouts = timeouts
        self.rateLimits = rateLimits
        self.clock = clock
    }
}
