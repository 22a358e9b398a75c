// The wall clock of the process, the default of every `clock` parameter.

import Glibc
import Segments

public enum SystemClock {
    /// Microseconds since 1970.
    public static func now() -> Micros {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Micros(time.tv_sec) * 1_000_000 + Micros(time.tv_nsec) / 1000
    }
}
