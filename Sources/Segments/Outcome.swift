// Outcome of an entity (`segments.md` §9), from raw flags and HTTP status.

/// The class an observation is counted in; exactly one. Order of precedence as declared.
public enum OutcomeClass: UInt8, Sendable, CaseIterable { case throttle, fault, error, ok }

/// The outcome bits of an entity. Open entities are ok (ruling R-03).
public struct Outcome: Sendable, Equatable {
    public var isThrottle: Bool
    public var isFault: Bool
    public var isError: Bool

    @inlinable
    public init(isThrottle: Bool, isFault: Bool, isError: Bool) {
        self.isThrottle = isThrottle
        self.isFault = isFault
        self.isError = isError
    }

    @inlinable
    public var countedAs: OutcomeClass {
        if isThrottle { return .throttle }
        if isFault { return .fault }
        return isError ? .error : .ok
    }
}

extension Entity {
    // Inlined, so that callers read the few fields it needs instead of copying the entity.
    @inlinable
    public var outcome: Outcome {
        guard !isOpen else { return Outcome(isThrottle: false, isFault: false, isError: false) }
        let status = httpStatus ?? 0
        let isThrottle = hasThrottleFlag || status == 429
        let isFault = hasFaultFlag || (500...599).contains(status)
        let isError = !isThrottle && (hasErrorFlag || (400...499).contains(status))
        return Outcome(isThrottle: isThrottle, isFault: isFault, isError: isError)
    }
}
