// Who gives up which partitions and who may claim some: a pure function over what one worker sees of the cluster. Every
// worker applies it to what it sees for itself; nobody coordinates them. Whatever state they start from and however old
// their views are, they come to an even split, because a partition moves only by being given up or by its owner's
// death, and is claimed by one.

/// What a worker is to do.
struct LeaseDecision: Equatable {
    /// Partitions it has too many, to be released as soon as their work is committed.
    var release: [Int] = []
    /// How many free partitions it should take.
    var claimCount = 0
}

enum LeasePolicy {
    /// Even share of the worker of a rank: no two shares differ by more than one, the lower ranks get the rest.
    static func share(rank: Int, workerCount: Int, partitionCount: Int) -> Int {
        guard workerCount > 0 else { return 0 }
        return partitionCount / workerCount + (rank < partitionCount % workerCount ? 1 : 0)
    }

    /// - Parameters:
    ///   - workers: the live ones in order of rank. One that does not see itself there does nothing.
    ///   - owners: by partition; nil: free, or its owner is dead.
    static func decide(_ worker: String, workers: [String], owners: [String?]) -> LeaseDecision {
        guard let rank = workers.firstIndex(of: worker) else { return LeaseDecision() }
        let share = share(rank: rank, workerCount: workers.count, partitionCount: owners.count)
        let mine = owners.indices.filter { owners[$0] == worker }
        if mine.count > share { return LeaseDecision(release: Array(mine.suffix(mine.count - share))) }
        return LeaseDecision(claimCount: min(share - mine.count, owners.count { $0 == nil }))
    }
}
