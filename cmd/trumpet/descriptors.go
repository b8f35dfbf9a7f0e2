package main

import "log/slog"

const (
	// maxHeadroom is for TCP connections that are no clients: requests, those who have not yet said
	// what they want, and those who are told that there is no place for them.
	maxHeadroom = 1024
	// ownFiles are a worker's own: standard files, listener, connections to Postgres, and some to spare.
	ownFiles = 64
)

// fitDescriptors returns how many clients, and how many other connections, there can be under the limit of
// open files, and warns if that is fewer clients than asked for: a worker that runs out of descriptors
// can neither accept anybody, to say that it is full, nor come back to Postgres.
func fitDescriptors(clients int, logger *slog.Logger) (fits, headroom int) {
	limit := openFilesLimit()
	fits, headroom = divideFiles(limit, clients)
	if fits < clients {
		logger.Warn("the limit of open files leaves room for fewer clients than --max-connections; raise it (LimitNOFILE in the systemd unit, or ulimit -n)",
			"max_connections", clients, "clients", fits, "open_files", limit, "open_files_needed", clients+maxHeadroom+ownFiles)
	}
	return fits, headroom
}

// divideFiles gives other connections a quarter of what there is, if that is less than they may have.
func divideFiles(limit uint64, clients int) (fits, headroom int) {
	if limit >= uint64(clients)+maxHeadroom+ownFiles {
		return clients, maxHeadroom
	}
	left := max(int(limit)-ownFiles, 8)
	headroom = min(left/4, maxHeadroom)
	return min(left-headroom, clients), headroom
}
