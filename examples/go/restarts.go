package embedbridge

import (
	"math"
	"time"
)

const (
	healthyAfter = time.Minute // of service: the next restart waits for nothing
	recycleEvery = time.Minute // a worker may replace itself so often for free
	maxHalfOpen  = 10          // times HalfOpenAfter
	jitter       = 0.2
)

// life is what a restart depends on of the process that is gone.
type life struct {
	readySince  time.Time // zero: never
	usefulSince time.Time // when it embedded first; zero: never
	isRecycle   bool      // it ended at its memory ceiling, all work answered
}

// restarts decides when the next worker starts. It is pure: times and the random number come in.
//
// The budget is a leaky bucket. It leaks only while a worker is useful, so that one which starts well and then dies at
// once heals nothing; the commonest mistake of supervisors is to forget all failures at a successful start.
type restarts struct {
	options    *Options
	level      float64
	failures   int // in a row, none of them after a healthy minute
	halfOpens  int
	recycledAt time.Time
}

// after returns how long to wait, and whether calls are refused meanwhile; random is in [-1, 1].
func (r *restarts) after(was life, now time.Time, random float64) (wait time.Duration, isOpen bool) {
	if !was.usefulSince.IsZero() {
		r.level = max(0, r.level-float64(now.Sub(was.usefulSince))/float64(r.options.RestartForgive))
	}
	if was.isRecycle && now.Sub(r.recycledAt) >= recycleEvery {
		r.recycledAt = now
		return 0, false
	}
	if !was.readySince.IsZero() && now.Sub(was.readySince) >= healthyAfter {
		r.failures, r.halfOpens = 0, 0
	} else {
		r.failures++
	}
	budget := float64(r.options.RestartBudget)
	r.level = min(budget, r.level+1)
	if r.level >= budget-1e-9 { // sums of fractions
		wait = r.options.HalfOpenAfter * time.Duration(min(maxHalfOpen, 1<<min(r.halfOpens, 16)))
		r.halfOpens++
		return wait, true
	}
	if r.failures == 0 {
		return 0, false
	}
	delay := float64(r.options.BackoffInitial) * math.Pow(2, float64(min(r.failures-1, 64)))
	delay = min(delay, float64(r.options.BackoffMax)) * (1 + jitter*random)
	return time.Duration(delay), false
}
