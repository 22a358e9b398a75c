// How far a long command is: one line that changes on a terminal, a line every few seconds elsewhere.

import Aggregation
import Glibc
import Synchronization

final class ProgressDisplay: Sendable {
    private struct State {
        var part: RebuildProgress.Part?
        var partBegan = ContinuousClock.now
        var doneBefore = 0
        var shown: ContinuousClock.Instant?
        var hasLine = false
        /// Came too soon after the one before.
        var pending: RebuildProgress?
    }

    private let state = Mutex(State())
    private let isTerminal = isatty(STDERR_FILENO) == 1

    /// Called by any thread, as often as it likes.
    func show(_ progress: RebuildProgress) {
        let text: String? = state.withLock { state in
            let now = ContinuousClock.now
            var text = ""
            let isNew = state.part != progress.part
            if isNew {
                // The end of a part is shown, however quickly it came.
                text += last(of: state)
                state.part = progress.part
                state.partBegan = now
                state.doneBefore = progress.done
            }
            let pause: Duration = isTerminal ? .milliseconds(200) : .seconds(5)
            if !isNew, let shown = state.shown, now - shown < pause {
                state.pending = progress
                return nil
            }
            state.pending = nil
            state.shown = now
            state.hasLine = true
            let elapsed = now - state.partBegan
            return text
                + framed(
                    Self.line(progress, done: progress.done - state.doneBefore, elapsed: elapsed, hasBar: isTerminal))
        }
        if let text { write(text) }
    }

    private func framed(_ line: String) -> String { isTerminal ? "\r\u{1B}[2K" + line : line + "\n" }

    /// The line that was held back; on a terminal the next one takes its place.
    private func last(of state: State) -> String {
        guard let pending = state.pending, !isTerminal else { return "" }
        let elapsed = ContinuousClock.now - state.partBegan
        return framed(Self.line(pending, done: pending.done - state.doneBefore, elapsed: elapsed, hasBar: false))
    }

    func end() {
        let (hasLine, held) = state.withLock { state in
            defer {
                state.hasLine = false
                state.pending = nil
            }
            return (state.hasLine, last(of: state))
        }
        if !held.isEmpty { write(held) }
        if hasLine, isTerminal { write("\r\u{1B}[2K") }
    }

    static func line(_ progress: RebuildProgress, done: Int, elapsed: Duration, hasBar: Bool) -> String {
        var words = [progress.part.rawValue]
        let unit = progress.part == .log ? "records" : "traces"
        if progress.total > 0 {
            let share = min(1, Double(progress.done) / Double(progress.total))
            if hasBar {
                let filled = Int(share * 30)
                words.append(
                    "[" + String(repeating: "#", count: filled) + String(repeating: ".", count: 30 - filled) + "]")
            }
            words.append("\(Int(share * 100)) %, \(progress.done) of \(progress.total) \(unit)")
        } else if progress.done > 0 {
            words.append("\(progress.done) \(unit)")
        }
        let seconds = Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18
        if done > 0, seconds > 0.5 {
            let rate = Double(done) / seconds
            words.append("\(Int(rate)) \(unit)/s")
            if progress.total > progress.done {
                words.append("\(text(Double(progress.total - progress.done) / rate)) left")
            }
        }
        return words.joined(separator: "  ")
    }

    private static func text(_ seconds: Double) -> String {
        let whole = Int(min(seconds, 1e9).rounded(.up))
        if whole < 60 { return "\(whole) s" }
        if whole < 3_600 { return "\(whole / 60) min \(whole % 60) s" }
        return "\(whole / 3_600) h \(whole % 3_600 / 60) min"
    }

    private func write(_ text: String) {
        let bytes = Array(text.utf8)
        _ = Glibc.write(STDERR_FILENO, bytes, bytes.count)
    }
}
