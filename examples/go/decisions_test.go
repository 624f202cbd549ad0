package embedbridge

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

// What decides without doing: restarts, health, pieces, answers.

func defaults() *Options {
	options, _ := Options{}.withDefaults()
	return &options
}

var epoch = time.Unix(1_000_000, 0)

// crashesUntilOpen lets a worker crash again and again after so much useful service; 0 means that it may go on for ever.
func crashesUntilOpen(service time.Duration) int {
	r, now := restarts{options: defaults()}, epoch
	for crashes := 1; crashes <= 1000; crashes++ {
		started := now
		now = now.Add(service)
		wait, isOpen := r.after(life{readySince: started, usefulSince: started}, now, 0)
		if isOpen {
			return crashes
		}
		now = now.Add(wait)
	}
	return 0
}

func TestTheBudgetIsALeakyBucket(t *testing.T) {
	for _, each := range []struct {
		service time.Duration
		crashes int
	}{{0, 5}, {30 * time.Second, 9}, {45 * time.Second, 17}, {time.Minute, 0}, {time.Hour, 0}} {
		if crashes := crashesUntilOpen(each.service); crashes != each.crashes {
			t.Errorf("open after %d crashes with %v of service, not %d", crashes, each.service, each.crashes)
		}
	}
}

func TestAReadyWorkerThatIsOfNoUseHealsNothing(t *testing.T) {
	r, now := restarts{options: defaults()}, epoch
	for crash := 1; crash <= 5; crash++ {
		started := now
		now = now.Add(time.Hour)
		if _, isOpen := r.after(life{readySince: started}, now, 0); isOpen != (crash == 5) {
			t.Errorf("open: %v at crash %d", isOpen, crash)
		}
	}
}

func TestTheBackoffDoublesUpToItsMaximum(t *testing.T) {
	options := defaults()
	options.RestartBudget = 1000
	r := restarts{options: options}
	want := []time.Duration{200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000}
	for i, milliseconds := range want {
		if wait, _ := r.after(life{}, epoch, 0); wait != milliseconds*time.Millisecond {
			t.Errorf("failure %d waits %v", i, wait)
		}
	}
	if low, _ := r.after(life{}, epoch, -1); low != 24*time.Second {
		t.Errorf("with jitter %v", low)
	}
	if wait, _ := r.after(life{readySince: epoch}, epoch.Add(time.Minute), 0); wait != 0 {
		t.Errorf("after a healthy minute %v", wait)
	}
	if wait, _ := r.after(life{}, epoch, 0); wait != 200*time.Millisecond {
		t.Errorf("then %v", wait)
	}
}

func TestHalfOpenAttemptsComeLaterEachTime(t *testing.T) {
	r := restarts{options: defaults()}
	for range 4 {
		r.after(life{}, epoch, 0)
	}
	for _, minutes := range []time.Duration{1, 2, 4, 8, 10, 10} {
		if wait, isOpen := r.after(life{}, epoch, 0); !isOpen || wait != minutes*time.Minute {
			t.Errorf("%v, open: %v", wait, isOpen)
		}
	}
}

func TestARecycleIsFreeOnceAMinute(t *testing.T) {
	options := defaults()
	options.RestartBudget = 2
	r := restarts{options: options}
	for _, each := range []struct {
		at     time.Duration
		isOpen bool
	}{{0, false}, {61 * time.Second, false}, {62 * time.Second, false}, {63 * time.Second, true}} {
		if _, isOpen := r.after(life{isRecycle: true}, epoch.Add(each.at), 0); isOpen != each.isOpen {
			t.Errorf("at %v open: %v", each.at, isOpen)
		}
	}
}

func at(seconds float64) time.Time { return epoch.Add(time.Duration(seconds * float64(time.Second))) }

func TestTwoPingsWithoutASignOfLifeAreAHang(t *testing.T) {
	h := newHealth(at(0), defaults())
	for _, each := range []struct {
		seconds float64
		ping    bool
		isHung  bool
	}{{4, false, false}, {5, true, false}, {14, false, false}, {15, true, false}, {25, false, true}} {
		if ping, hung := h.check(at(each.seconds), false); ping != each.ping || (hung != "") != each.isHung {
			t.Errorf("at %v: ping %v, %q", each.seconds, ping, hung)
		}
	}
}

func TestAnySignOfLifeForgivesAMiss(t *testing.T) {
	h := newHealth(at(0), defaults())
	h.check(at(5), true)
	h.check(at(15), true)
	h.received(at(16))
	if ping, hung := h.check(at(25), true); !ping || hung != "" {
		t.Errorf("ping %v, %q", ping, hung)
	}
}

// pong lets a ping be sent and answered at once.
func pong(h *health, seconds float64, microBatches int64) (hung string) {
	h.check(at(seconds), true)
	h.received(at(seconds))
	h.ponged(at(seconds), microBatches, true)
	_, hung = h.check(at(seconds), true)
	return hung
}

func TestPongsWithoutProgressAreAHang(t *testing.T) {
	h := newHealth(at(0), defaults())
	h.workBegan(at(0))
	for seconds := 5.0; seconds <= 60; seconds += 5 {
		if hung := pong(h, seconds, 3); hung != "" {
			t.Fatalf("at %v: %s", seconds, hung)
		}
	}
	if hung := pong(h, 65, 3); hung == "" { // a minute after the first pong told of what was done before
		t.Error("it is not noticed")
	}
}

func TestProgressIsNoHangHoweverSlow(t *testing.T) {
	h := newHealth(at(0), defaults())
	h.workBegan(at(0))
	for seconds := 5.0; seconds <= 600; seconds += 5 {
		if hung := pong(h, seconds, int64(seconds/50)); hung != "" {
			t.Fatalf("at %v: %s", seconds, hung)
		}
	}
	for seconds := 605.0; seconds <= 700; seconds += 5 { // micro-batches of 50 s: twenty times that is a hang
		if hung := pong(h, seconds, 12); hung != "" {
			t.Fatalf("at %v: %s", seconds, hung)
		}
	}
}

func TestPiecesAreBoundedAndCoverTheCall(t *testing.T) {
	given := make([]string, 30_000)
	for i := range given {
		given[i] = strings.Repeat("x", i%97*i%6151)
	}
	given[777] = strings.Repeat("x", 6<<20)
	j, pieces, err := newJob(given, nil)
	if err != nil || j.missing != len(pieces) {
		t.Fatal(err)
	}
	next := 0
	for _, p := range pieces {
		if p.start != next || p.stop <= p.start {
			t.Fatalf("a piece from %d to %d behind %d", p.start, p.stop, next)
		}
		if p.stop-p.start > 1 && (p.tokens > pieceTokens || p.bytes > pieceBytes) {
			t.Errorf("a piece of %d tokens and %d bytes", p.tokens, p.bytes)
		}
		next = p.stop
	}
	if next != len(given) {
		t.Errorf("%d of %d texts", next, len(given))
	}
	first, second := pieces[0].halves()
	if first.stop != second.start || second.stop != pieces[0].stop || first.tokens+second.tokens != pieces[0].tokens ||
		first.bytes+second.bytes != pieces[0].bytes || j.missing != len(pieces)+1 {
		t.Error("the halves are not the whole")
	}
}

func TestLinesThatAreNoAnswersAreRefused(t *testing.T) {
	nan := base64.StdEncoding.EncodeToString([]byte{0, 0, 0xc0, 0x7f})
	for _, line := range []string{
		"", "null", "7", "[]", "Segmentation fault", `{"id":1}`, `{"id":1,"status":"fine"}`, `{"id":1,"status":"ok"`,
		`{"id":1,"status":"ok","count":"1"}`, `{"id":1,"status":"ok","embeddings_base64":"AAAA"}`,
		`{"id":1,"status":"ok","embeddings_base64":"AAAAAA*="}`, `{"id":1,"status":"ok","embeddings_base64":"` + nan + `"}`,
	} {
		if _, err := decodeLine([]byte(line)); err == nil {
			t.Errorf("%s was accepted", line)
		}
	}
	for _, line := range []string{`{"id":"x","status":"ok"}`, `{"id":null,"status":"error"}`, `{"id":1.5,"status":"ok","new":{}}`} {
		if r, err := decodeLine([]byte(line)); err != nil || r.id != 0 {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestAnswersThatDoNotFitAreRefused(t *testing.T) {
	good := func() *response {
		return &response{Info: Info{Dimension: 2}, Count: 2, vectors: make([]float32, 4), Tokens: []int{1, 1}, Truncated: []int{1}}
	}
	if err := good().check(2, 2); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*response){
		"count":     func(r *response) { r.Count = 3 },
		"dimension": func(r *response) { r.Dimension = 3 },
		"zero":      func(r *response) { r.Dimension, r.vectors = 0, nil },
		"length":    func(r *response) { r.vectors = r.vectors[:3] },
		"tokens":    func(r *response) { r.Tokens = r.Tokens[:1] },
		"truncated": func(r *response) { r.Truncated = []int{2} },
		"negative":  func(r *response) { r.Truncated = []int{-1} },
	} {
		r := good()
		spoil(r)
		if r.check(2, 2) == nil || name != "dimension" && r.check(2, 0) == nil {
			t.Errorf("a wrong %s was accepted", name)
		}
	}
}
