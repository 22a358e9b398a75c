// What `beamline load` can be told, already parsed.

public struct LoadOptions: Sendable {
    public var endpoint: Endpoint
    /// Nil: send unsigned (only the bare floor of the benchmark takes that).
    public var credentials: SigningCredentials?
    public var region = "us-east-1"
    /// One thread and one connection each.
    public var connections = 4
    public var documentsPerCall = 25
    /// Documents per second over all connections on a fixed schedule, latency counted from the scheduled time (open loop); nil: as fast as
    /// answers come back (closed loop).
    public var documentsPerSecond: Double?
    public var durationSeconds: Double? = 10
    /// Stops after so many traces in all.
    public var traces: Int?
    public var shape = TraceShape()
    /// Dates the traces over so many seconds before the start of the run, oldest first; needs `traces`. Nil: as they are sent.
    public var spreadSeconds: Double?
    /// Waits after the last acknowledgement until a read says it contains everything, and reports when that was.
    public var untilComplete = false
    /// Reads totals and a sample back and compares them with what was sent; implies `untilComplete`.
    public var check = false
    /// Measures acknowledged → visible with probe traces during the run.
    public var visibility = false

    public init(endpoint: Endpoint) { self.endpoint = endpoint }
}
