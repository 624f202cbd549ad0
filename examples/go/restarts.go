package embedbridge

import (
	"math"
	"time"
)

const (
	healthyAfter = time.Minute // of service: the next restart waits for nothing
	recycleEvery = time.Minute // a worker may replace itself so often for free
	jitter       = 0.2
)

// life is what a restart depends on of the process that is gone.
type life struct {
	readySince    time.Time // zero: never
	usefulSince   time.Time // when it embedded first; zero: never
	recycle       bool      // it ended at its memory ceiling, all work answered
	investigation bool      // it died with a suspect alone, whose fault it may be
	free          bool      // a further death of one investigation, which cost the budget once
}

// restarts decides when the next worker starts. It is pure: times and the random number come in.
//
// The budget is a leaky bucket. It leaks only while a worker is useful, so that one which starts well and then dies at
// once heals nothing; the commonest mistake of supervisors is to forget all failures at a successful start.
type restarts struct {
	options    *Options
	level      float64
	failures   int           // in a row, none of them after a healthy minute
	openFor    time.Duration // the next refusal; zero: HalfOpenAfter
	recycledAt time.Time
}

// after returns how long to wait, and whether calls are refused meanwhile; random is in [-1, 1].
func (r *restarts) after(was life, now time.Time, random float64) (wait time.Duration, open bool) {
	if !was.usefulSince.IsZero() {
		r.level = max(0, r.level-float64(now.Sub(was.usefulSince))/float64(r.options.RestartForgive))
	}
	if was.recycle && (r.recycledAt.IsZero() || now.Sub(r.recycledAt) >= recycleEvery) {
		r.recycledAt = now
		return 0, false
	}
	if !was.free {
		r.level = min(r.options.RestartBudget, r.level+1)
		if r.level >= r.options.RestartBudget-1e-9 { // sums of fractions
			wait = min(r.options.HalfOpenMax, max(r.openFor, r.options.HalfOpenAfter))
			r.openFor = 2 * wait
			return wait, true
		}
	}
	delay := float64(r.options.BackoffInitial)
	switch {
	case was.investigation:
	case !was.readySince.IsZero() && now.Sub(was.readySince) >= healthyAfter:
		r.failures, r.openFor, delay = 0, 0, 0
	default:
		delay = min(float64(r.options.BackoffMax), delay*math.Pow(2, float64(min(r.failures, 64))))
		r.failures++
	}
	return time.Duration(delay * (1 + jitter*random)), false
}
