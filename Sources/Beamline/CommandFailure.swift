// Why a command ends with exit code 1: one sentence that says what happened, to what, and what to do.

struct CommandFailure: Error, CustomStringConvertible {
    var description: String

    init(_ description: String) { self.description = description }
}
