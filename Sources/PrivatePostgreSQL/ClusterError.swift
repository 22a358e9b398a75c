// Why the private PostgreSQL cannot serve, as one sentence for the person at the terminal.

public struct ClusterError: Error, CustomStringConvertible, Sendable {
    /// What happened, to what, and what to do.
    public var description: String

    init(_ description: String) { self.description = description }

    /// A failed system call, with the kernel's words.
    init(_ what: String, errno code: Int32) {
        description = "\(what): \(errorText(code))"
    }
}
