package embedbridge

import "time"

const (
	pongMisses    = 2
	slowFactor    = 20
	averageWeight = 0.2 // of the newest micro-batch time in the moving average
)

// health decides whether a worker hangs. It is pure: times come in, a verdict comes out.
//
// Two detectors, because alive is not the same as working: pings without any sign of life, and pongs that tell of no
// progress while work is in flight. A busy worker answers pings, so being busy is neither.
type health struct {
	options      *Options
	receivedAt   time.Time
	pingedAt     time.Time // zero: no ping is out
	misses       int
	progressAt   time.Time
	seenAt       time.Time // when we last knew whether there was progress
	microBatches int64     // as of the last pong since the work began; -1: none yet
	countedAt    time.Time
	microBatch   time.Duration // moving average of one
	stuck        bool
}

func newHealth(now time.Time, options *Options) *health {
	return &health{options: options, receivedAt: now, progressAt: now, seenAt: now, countedAt: now, microBatches: -1}
}

// workBegan notes the first request after a pause, which must not count as a slow micro-batch.
func (h *health) workBegan(now time.Time) { h.progressAt, h.seenAt, h.microBatches = now, now, -1 }

// received notes any line.
func (h *health) received(now time.Time) { h.receivedAt, h.misses = now, 0 }

// embedded notes an answer to embed, which is progress.
func (h *health) embedded(now time.Time) { h.progressAt, h.seenAt = now, now }

func (h *health) ponged(now time.Time, microBatches int64, busy bool) {
	before, pingedAt := h.microBatches, h.pingedAt
	h.microBatches, h.pingedAt, h.seenAt = microBatches, time.Time{}, now
	if microBatches != before {
		if before >= 0 && microBatches > before {
			each := now.Sub(h.countedAt) / time.Duration(microBatches-before)
			h.microBatch += time.Duration(averageWeight * float64(each-h.microBatch))
		}
		h.progressAt, h.countedAt = now, now
	} else if busy && !pingedAt.IsZero() {
		// As of the ping: a host that slept has answers lying in the pipe behind this pong.
		patience := max(h.options.StuckAfter, slowFactor*h.microBatch)
		h.stuck = pingedAt.Sub(h.progressAt) >= patience
	}
}

// check returns whether a ping is due, and a reason if the worker hangs. A ping that is due counts as sent.
func (h *health) check(now time.Time, busy bool) (ping bool, hung string) {
	if h.stuck {
		return false, "it made no progress with what it had"
	}
	if now.Before(h.nextCheck(busy)) {
		return false, ""
	}
	if !h.pingedAt.IsZero() && h.receivedAt.Before(h.pingedAt) {
		if h.misses++; h.misses >= pongMisses {
			return false, "it gave no sign of life"
		}
	}
	h.pingedAt = now
	return true, ""
}

func (h *health) nextCheck(busy bool) time.Time {
	switch {
	case h.stuck:
		return h.receivedAt
	case !h.pingedAt.IsZero():
		return h.pingedAt.Add(h.options.PongTimeout)
	case busy && h.seenAt.Before(h.receivedAt):
		return h.seenAt.Add(h.options.PingEvery)
	default:
		return h.receivedAt.Add(h.options.PingEvery)
	}
}
