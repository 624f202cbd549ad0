package embedbridge

import (
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// What decides without doing. policy_test.go has what the clients of all languages decide alike.

func defaults() *Options {
	options, _ := Options{}.withDefaults()
	return &options
}

func TestPiecesAreBoundedAndCoverTheCall(t *testing.T) {
	given := make([]string, 30_000)
	for i := range given {
		given[i] = strings.Repeat("x", i%97*i%6151)
	}
	given[777] = strings.Repeat("x", 6<<20)
	j, pieces, err := newJob(given, EmbedOptions{}, nil)
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

func TestNoLineOfAHostileWorkerIsAPanic(t *testing.T) {
	for _, line := range []string{
		"", "null", "7", "[]", "Segmentation fault", `{"id":1}`, `{"id":1,"status":"fine"}`, `{"id":1,"status":"ok"`,
		`{"id":1,"STATUS":"ok"}`, "{\"id\":1,\"status\":\"ok\",\"x\":\"\xff\"}",
	} {
		if _, err := parseLine([]byte(line)); err == nil {
			t.Errorf("%s was accepted", line)
		}
	}
	for _, line := range []string{`{"id":"x","status":"ok"}`, `{"id":null,"status":"error"}`, `{"id":1.5,"status":"ok","new":{}}`} {
		if m, err := parseLine([]byte(line)); err != nil || m.id() != 0 {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte(`{"id":1,"status":"ok","model":"m","fingerprint":"f","count":1,"dimension":1,"embeddings_base64":"AACAPw==","tokens":[1],"truncated":[0]}`))
	f.Add([]byte(`{"id":1,"status":"error","code":"c","message":"m","retryable":true,"index":0}`))
	f.Add([]byte(`{"id":1,"status":"ok","protocol":1,"limits":{"max_inputs":4611686018427387904},"prompts":{"query":null}}`))
	f.Add([]byte(`{"id":1,"status":"ok","count":4,"dimension":4611686018427387904,"embeddings_base64":"\u0041"}`))
	f.Add([]byte(`{"id":1,"status":"ok","model":"m","fingerprint":"f","count":1,"tokens":[3],"truncated":[],"offsets":[[[0,1]]]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseLine(line)
		if err != nil {
			return
		}
		if a, err := m.vectors(1, 0, Float32); err == nil && (len(a.vectors) != a.dimension || len(a.tokens) != 1) {
			t.Errorf("%d numbers of dimension %d", len(a.vectors), a.dimension)
		}
		if a, err := m.tokens([]string{"a"}, true); err == nil && (len(a.offsets) != 1 || len(a.tokens) != 1) {
			t.Errorf("%v for %v tokens", a.offsets, a.tokens)
		}
		if refused, err := m.refusal(7, 1); err == nil && refused.Index != -1 && refused.Index != 7 {
			t.Errorf("input %d", refused.Index)
		}
		if info, err := m.info(); err == nil && (info.Dimension < 1 || info.Limits.MaxInputs < 1) {
			t.Errorf("%+v", info)
		}
	})
}

func TestDurationsWithoutEndAreAccepted(t *testing.T) {
	never := time.Duration(math.MaxInt64)
	options, err := Options{
		StartTimeout: never, RequestTimeout: never, RestartForgive: never, BackoffInitial: never, BackoffMax: never,
		HalfOpenAfter: never, HalfOpenMax: never, PingEvery: never, PongTimeout: never, StuckAfter: never,
		DrainTimeout: never, TerminateTimeout: never,
	}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if wait := options.DrainTimeout + 3*options.TerminateTimeout; wait < longestWait {
		t.Errorf("a sum of waits is %v", wait)
	}
	if at := newHealth(now, &options).nextCheck(false); at.Before(now) {
		t.Errorf("the next check is at %v", at)
	}
	r := restarts{options: &options}
	for range 10 {
		if wait, _ := r.after(life{}, now, 1); wait < options.BackoffInitial {
			t.Errorf("a wait of %v", wait)
		}
	}
}

func TestOptionsThatMeanNothingAreRefused(t *testing.T) {
	for _, options := range []Options{
		{Command: []string{}}, {Command: []string{""}}, {DrainTimeout: -1}, {MaxAttempts: -1}, {RestartBudget: -1},
		{RestartBudget: math.NaN()},
	} {
		if _, err := New(options); err == nil {
			t.Errorf("%+v was accepted", options)
		}
	}
}

func TestWhatNoLineCanCarryIsRefused(t *testing.T) {
	wrong, zero := "not \xff UTF-8", 0
	for _, options := range []EmbedOptions{
		{Model: wrong}, {Prompt: &wrong}, {PromptName: &wrong}, {Dimensions: &zero}, {Precision: -1}, {Precision: 3},
	} {
		if _, _, err := newJob([]string{"a"}, options, nil); err == nil || !utf8.ValidString(err.Error()) {
			t.Errorf("%+v: %v", options, err)
		}
	}
}

func TestAListThatIsChangedAfterTheCallIsNotRead(t *testing.T) {
	inputs := []string{"a"}
	j, _, err := newJob(inputs, EmbedOptions{}, nil)
	inputs[0] = "b" // a call that was cancelled may still be written
	if err != nil || j.inputs[0] != "a" {
		t.Error(err, j.inputs)
	}
}
