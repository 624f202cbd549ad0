package embedbridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The tests drive the fake worker, whose faults are flags, and the real one. EMBED_BRIDGE_PYTHON names an interpreter
// with the project's dependencies.

const patience = 3 * time.Minute // for everything that must happen; nothing is proved by its length

var root, _ = filepath.Abs("../..")

func python() string {
	if path := os.Getenv("EMBED_BRIDGE_PYTHON"); path != "" {
		return path
	}
	return "python3"
}

// newFile names a file that is not there yet, and is gone after the test. Not in t.TempDir, which Wine cannot remove.
func newFile(t *testing.T) string {
	t.Helper()
	file, err := os.CreateTemp("", "embed-bridge-")
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	_ = os.Remove(file.Name())
	t.Cleanup(func() { _ = os.Remove(file.Name()) })
	return file.Name()
}

// start makes a client of a fake worker with these faults, and closes it after the test.
func start(t *testing.T, options Options, faults ...string) *Client {
	t.Helper()
	if options.Command == nil {
		options.Command = append([]string{python(), "-m", "bridge_client.testing.fake_worker", "--supervised"}, faults...)
	}
	options.Env = append(options.Env, "PYTHONPATH="+root)
	if options.BackoffInitial == 0 {
		options.BackoffInitial = 10 * time.Millisecond
	}
	for _, limit := range []*time.Duration{&options.StartTimeout, &options.PongTimeout, &options.StuckAfter} {
		if *limit == 0 { // a busy machine is slow, and no test is about that
			*limit = patience
		}
	}
	client, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

// once limits the faults to the first process.
func once(t *testing.T, faults ...string) []string {
	return append(faults, "--processes=1", "--count-file="+newFile(t))
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// texts are numbered, so that a vector in the wrong place is seen.
func texts(count int) []string {
	made := make([]string, count)
	for i := range made {
		made[i] = "text " + strconv.Itoa(i)
	}
	return made
}

// askPython returns the vectors of the fake worker, on a way without this client.
func askPython(texts []string) ([]float32, error) {
	const program = "import json, sys; from bridge_client.testing import fake_vector; " +
		"print(json.dumps([x for text in json.load(sys.stdin.buffer) for x in fake_vector(text)]))"
	told, _ := json.Marshal(texts)
	command := exec.Command(python(), "-c", program)
	command.Env = append(os.Environ(), "PYTHONPATH="+root)
	command.Stdin = strings.NewReader(string(told))
	output, err := command.Output()
	if err != nil {
		return nil, err
	}
	var vectors []float32
	return vectors, json.Unmarshal(output, &vectors)
}

var askPythonOnce = sync.OnceValues(func() ([]float32, error) { return askPython(texts(100)) })

func assertVectors(t *testing.T, embeddings *Embeddings, texts []string) {
	t.Helper()
	expected, err := askPython(texts)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(embeddings.Vectors, expected) {
		t.Error("other vectors than Python's")
	}
}

// assertRow compares the vector of "text <number>".
func assertRow(t *testing.T, vector []float32, number int) {
	t.Helper()
	if hundred, err := askPythonOnce(); err != nil || !slices.Equal(vector, hundred[8*number:8*number+8]) {
		t.Errorf("the vector of text %d is %v, %v", number, vector, err)
	}
}

func assertEmbeds(t *testing.T, client *Client) {
	t.Helper()
	embeddings, err := client.Embed(within(t), texts(100), nil)
	if err != nil {
		t.Fatal(err)
	}
	if embeddings.Count != 100 || embeddings.Dimension != 8 {
		t.Errorf("%d vectors of %d", embeddings.Count, embeddings.Dimension)
	}
	for number := range 100 {
		assertRow(t, embeddings.Vector(number), number)
	}
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen: " + what)
		}
	}
}

const isWindows = runtime.GOOS == "windows" // where a process is killed without its children

// Vectors -----------------------------------------------------------------------------------------------------------

func TestVectorsAreThoseOfPythonBitForBit(t *testing.T) {
	t.Parallel()
	client := start(t, Options{})
	odd := []string{"", " ", "naïve 🎈", "<b>&amp;</b>", "line\nbreak\u2028\x00\x1b\u007f", "\ufeff\U0010ffff", strings.Repeat("x", 100_000)}
	embeddings, err := client.Embed(within(t), odd, nil)
	if err != nil {
		t.Fatal(err)
	}
	assertVectors(t, embeddings, odd)
	if embeddings.Model != "fake-model" || embeddings.Fingerprint != "fake000000000001" || len(embeddings.Tokens) != len(odd) {
		t.Errorf("%+v", embeddings)
	}
	assertRow(t, mustEmbed(t, client, "text 3").Vector(0), 3)
}

func mustEmbed(t *testing.T, client *Client, texts ...string) *Embeddings {
	t.Helper()
	embeddings, err := client.Embed(within(t), texts, nil)
	if err != nil {
		t.Fatal(err)
	}
	return embeddings
}

func TestALargeCallIsCutIntoPiecesAndJoinedInOrder(t *testing.T) {
	t.Parallel()
	// Small limits of the worker cut the pieces further.
	client := start(t, Options{}, "--max-inputs=1000", "--max-line-bytes=20000")
	many := texts(8191)
	long := strings.Repeat("word ", 600)
	many[10], many[8000] = long, long
	embeddings, err := client.Embed(within(t), many, nil)
	if err != nil {
		t.Fatal(err)
	}
	assertVectors(t, embeddings, many)
	if !slices.Equal(embeddings.Truncated, []int{10, 8000}) || embeddings.Tokens[10] != 602 || embeddings.Tokens[11] != 4 {
		t.Errorf("truncated %v, tokens %v", embeddings.Truncated, embeddings.Tokens[10:12])
	}
}

func TestNoTextsGiveNoVectors(t *testing.T) {
	t.Parallel()
	client := start(t, Options{})
	for _, none := range [][]string{nil, {}} {
		embeddings, err := client.Embed(within(t), none, nil)
		if err != nil || embeddings.Count != 0 || embeddings.Dimension != 8 {
			t.Errorf("%+v, %v", embeddings, err)
		}
	}
}

func TestEveryOptionTravels(t *testing.T) {
	t.Parallel()
	client := start(t, Options{})
	yes, query, three := true, "query", 3
	embeddings, err := client.Embed(within(t), []string{"a"},
		&EmbedOptions{Model: "fake-model", PromptName: &query, Dimensions: &three, Normalize: &yes, Truncate: &yes})
	if err != nil || embeddings.Dimension != 3 || len(embeddings.Vectors) != 3 {
		t.Errorf("%+v, %v", embeddings, err)
	}
	_, err = client.Embed(within(t), []string{"a"}, &EmbedOptions{PromptName: &query, Prompt: &query})
	assertRequestError(t, err, "invalid_request", -1)
}

func TestEachHalfOfWhatIsTooLongForALineHasATimeLimit(t *testing.T) {
	client := start(t, Options{RequestTimeout: time.Second}, "--max-line-bytes=20000", "--stall-after=1")
	ended := make(chan error, 1)
	go func() { // without a deadline, which would be for the whole call
		_, err := client.Embed(context.Background(), []string{strings.Repeat("a", 11_000), strings.Repeat("b", 11_000)}, nil)
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
	case <-within(t).Done():
		t.Fatal("the second half has none")
	}
}

func assertRequestError(t *testing.T, err error, code string, index int) {
	t.Helper()
	var request *RequestError
	if !errors.As(err, &request) || request.Code != code || request.Index != index {
		t.Errorf("not %s at %d: %v", code, index, err)
	}
}

func TestConcurrentCallsShareOneWorker(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--unknown-ids", "--duplicate-after=0")
	var calls sync.WaitGroup
	for caller := range 50 {
		calls.Add(1)
		go func() {
			defer calls.Done()
			for round := range 10 {
				number := (caller + round) % 100
				embeddings, err := client.Embed(within(t), []string{fmt.Sprintf("text %d", number)}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				assertRow(t, embeddings.Vector(0), number)
			}
		}()
	}
	calls.Wait()
	if stats := client.Stats(); stats.Restarts != 0 || stats.InFlight != 0 || stats.Queued != 0 || !stats.Ready {
		t.Errorf("%+v", stats)
	}
}

func TestAnswersInAnotherOrderFindTheirCalls(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--reorder=4")
	var calls sync.WaitGroup
	for number := range 20 {
		calls.Add(1)
		go func() {
			defer calls.Done()
			embeddings, err := client.Embed(within(t), []string{fmt.Sprintf("text %d", number)}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			assertRow(t, embeddings.Vector(0), number)
		}()
	}
	calls.Wait()
}

// Errors of requests ------------------------------------------------------------------------------------------------

func TestAnErrorAnswerIsTheCallsError(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--error-after=1:inference_failed")
	if _, err := client.Embed(within(t), texts(3), nil); err != nil {
		t.Fatal(err)
	}
	_, err := client.Embed(within(t), texts(3), nil)
	assertRequestError(t, err, "inference_failed", 0)
	if client.Stats().Restarts != 0 {
		t.Error("an error answer is no reason to restart")
	}
}

func TestTheIndexOfAnErrorCountsThroughTheWholeCall(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--max-line-bytes=4000")
	_, err := client.Embed(within(t), append(texts(500), strings.Repeat("x", 5000)), nil)
	assertRequestError(t, err, "input_too_long", 500)
	_, err = client.Embed(within(t), []string{"good", "not \xff UTF-8"}, nil)
	assertRequestError(t, err, "invalid_request", 1)
	assertEmbeds(t, client)
	// The second request of the call is refused, at its first text.
	client = start(t, Options{}, "--max-inputs=10", "--error-after=1:inference_failed")
	_, err = client.Embed(within(t), texts(11), nil)
	assertRequestError(t, err, "inference_failed", 5)
}

func TestAStalledRequestTimesOutAndTheWorkerLivesOn(t *testing.T) {
	t.Parallel()
	client := start(t, Options{RequestTimeout: 50 * time.Millisecond}, "--stall-after=0")
	info, err := client.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Embed(context.Background(), texts(1), nil); !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Embed(ctx, texts(1), nil); !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := client.Ping(within(t)); err != nil {
		t.Error(err)
	}
	if stats := client.Stats(); stats.PID != info.PID || stats.Restarts != 0 {
		t.Errorf("%+v", stats)
	}
}

func TestACancelledCallEndsAtOnceAndTheWorkerDropsIt(t *testing.T) {
	t.Parallel()
	client := start(t, quick, "--latency=3600", "--max-in-flight=1")
	if _, err := client.Info(within(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	for range 2 {
		go func() { _, err := client.Embed(ctx, texts(100), nil); ended <- err }()
	}
	until(t, "one is sent and one waits", func() bool { stats := client.Stats(); return stats.InFlight == 1 && stats.Queued == 1 })
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	if queued := client.Stats().Queued; queued != 0 {
		t.Errorf("%d are still queued", queued)
	}
	if _, err := client.Embed(ctx, texts(1), nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	until(t, "the worker gives it up", func() bool { return client.Stats().InFlight == 0 })
}

func TestALateAnswerIsIgnored(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--latency=0.2", "--slow-write=50:0.01")
	if _, err := client.Info(within(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 250*time.Millisecond) // while it answers, more or less
	defer cancel()
	if _, err := client.Embed(ctx, texts(100), nil); err != nil && !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	assertEmbeds(t, client)
	if stats := client.Stats(); stats.InFlight != 0 || stats.Restarts != 0 {
		t.Errorf("%+v", stats)
	}
}

func TestAWorkerThatIsAboutToLeaveGetsNothingNew(t *testing.T) {
	t.Parallel()
	client := start(t, Options{MaxAttempts: 1}, once(t, "--error-after=0:shutting_down")...)
	if _, err := client.Info(within(t)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := client.Embed(within(t), texts(1), nil); ended <- err }()
	until(t, "it is refused and waits", func() bool { return client.Stats().Queued == 1 })
	if client.Stats().Ready {
		t.Error("it may get something new")
	}
	until(t, "the worker leaves", func() bool { return sigkill(client.Stats().PID) })
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Deaths and lies ---------------------------------------------------------------------------------------------------

var quick = Options{
	MaxAttempts: 2, RestartBudget: 1000, DrainTimeout: 100 * time.Millisecond, TerminateTimeout: 100 * time.Millisecond,
}

// impatient is for workers that hang. A busy machine makes others late, too, so it waits for two seconds and not for two
// moments.
func impatient() Options {
	options := quick
	options.PingEvery, options.PongTimeout = 30*time.Millisecond, 1500*time.Millisecond
	return options
}

type fault struct {
	flag string
	kind error
}

func (f fault) options() Options {
	if f.kind == ErrWorkerHung {
		return impatient()
	}
	return quick
}

var faults = []fault{
	{"--kill-after=1", ErrWorkerDied},
	{"--kill-after=1:SEGV", ErrWorkerDied},
	{"--exit-after=1", ErrWorkerDied},
	{"--exit-after=1:70", ErrWorkerDied},
	{"--partial-line-after=1", ErrWorkerDied},
	{"--garbage-after=1", ErrWorkerDied},
	{"--wrong-count-after=1", ErrWorkerDied},
	{"--wrong-dimension-after=1", ErrWorkerDied},
	{"--truncated-base64-after=1", ErrWorkerDied},
	{"--nan-after=1", ErrWorkerDied},
	{"--other-fingerprint-after=1", ErrWorkerDied},
	{"--close-output-after=1", ErrWorkerDied},
	{"--hang-after=1", ErrWorkerHung},
	{"--stop-after=1", ErrWorkerHung},
	{"--stop-reading-after=1", ErrWorkerHung},
}

func TestWhatWasInFlightIsSentAgain(t *testing.T) {
	for _, each := range faults {
		t.Run(each.flag, func(t *testing.T) {
			t.Parallel()
			client := start(t, each.options(), once(t, each.flag)...)
			assertEmbeds(t, client)
			assertEmbeds(t, client)
			assertEmbeds(t, client)
			if restarts := client.Stats().Restarts; restarts != 1 {
				t.Errorf("%d restarts", restarts)
			}
		})
	}
}

func TestADeathAtEveryAttemptIsOneClearError(t *testing.T) {
	for _, each := range faults {
		t.Run(each.flag, func(t *testing.T) {
			t.Parallel()
			// A worker of its own for each attempt answers nothing.
			client := start(t, each.options(), strings.Replace(each.flag, "=1", "=0", 1), "--say=the last\rwords")
			_, err := client.Embed(within(t), texts(3), nil)
			var death *WorkerError
			if !errors.Is(err, each.kind) || !errors.As(err, &death) || death.StderrTail != "the last\nwords" || death.Process == nil {
				t.Error(err)
			}
			until(t, "the next worker is ready", func() bool { return client.Stats().Restarts == 2 })
		})
	}
}

func TestOnlyTheGuiltyCallFails(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--poison=bad", "--latency=0.01")
	var calls sync.WaitGroup
	for number := range 20 {
		calls.Add(1)
		go func() {
			defer calls.Done()
			text := fmt.Sprintf("text %d", number)
			if number == 7 {
				text = "bad"
			}
			embeddings, err := client.Embed(within(t), []string{text}, nil)
			switch {
			case number == 7 && !errors.Is(err, ErrWorkerDied):
				t.Error(err)
			case number != 7 && err != nil:
				t.Error(err)
			case number != 7:
				assertRow(t, embeddings.Vector(0), number)
			}
		}()
	}
	calls.Wait()
}

// killUnderLoad kills the worker again and again while many callers embed, and returns how many calls succeeded.
func killUnderLoad(t *testing.T, client *Client, kills int, embed func(caller int) error) int {
	var done atomic.Bool
	var succeeded atomic.Int64
	var callers sync.WaitGroup
	for caller := range 16 {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for !done.Load() {
				if err := embed(caller); err == nil {
					succeeded.Add(1)
				} else if !errors.Is(err, ErrWorkerDied) {
					t.Error(err)
					return
				}
			}
		}()
	}
	for kill := range kills {
		before := succeeded.Load()
		until(t, "calls succeed", func() bool { return succeeded.Load() >= before+50 })
		until(t, "a worker is there", func() bool {
			stats := client.Stats()
			return stats.Ready && sigkill(stats.PID)
		})
		until(t, "it is replaced", func() bool { return client.Stats().Restarts > kill })
	}
	done.Store(true)
	callers.Wait()
	return int(succeeded.Load())
}

func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	client := start(t, Options{RestartBudget: 100})
	killUnderLoad(t, client, 5, func(caller int) error {
		embeddings, err := client.Embed(within(t), []string{fmt.Sprintf("text %d", caller)}, nil)
		if err == nil {
			assertRow(t, embeddings.Vector(0), caller)
		}
		return err
	})
	assertEmbeds(t, client)
}

func TestAWorkerThatMakesNoProgressIsKilled(t *testing.T) {
	t.Parallel()
	options := impatient()
	options.StuckAfter = 200 * time.Millisecond
	client := start(t, options, "--stall-after=0")
	if _, err := client.Embed(within(t), texts(1), nil); !errors.Is(err, ErrWorkerHung) {
		t.Error(err)
	}
}

func TestAPingWhoseWorkerDiesIsAskedAgain(t *testing.T) {
	t.Parallel()
	client := start(t, impatient(), once(t, "--hang-after=0")...)
	ended := make(chan error, 1)
	go func() { _, err := client.Embed(within(t), texts(1), nil); ended <- err }()
	until(t, "it is sent", func() bool { return client.Stats().InFlight == 1 })
	if err := client.Ping(within(t)); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if restarts := client.Stats().Restarts; restarts != 1 {
		t.Errorf("%d restarts", restarts)
	}
}

func TestAPingEndsWhenCallsAreRefused(t *testing.T) {
	t.Parallel()
	options := impatient()
	options.RestartBudget = 1
	client := start(t, options, "--hang-after=0")
	ended := make(chan error, 1)
	go func() { _, err := client.Embed(within(t), texts(1), nil); ended <- err }()
	until(t, "it is sent", func() bool { return client.Stats().InFlight == 1 })
	if err := client.Ping(within(t)); !errors.Is(err, ErrCircuitOpen) {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, ErrCircuitOpen) {
		t.Error(err)
	}
}

func TestACallThatIsWithdrawnBeforeItsReplayKeepsNoTimer(t *testing.T) {
	t.Parallel()
	client := start(t, Options{BackoffInitial: time.Hour, RestartBudget: 100}, "--exit-after=0:70")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { _, err := client.Embed(ctx, texts(1), nil); ended <- err }()
	until(t, "it waits to be sent again", func() bool { stats := client.Stats(); return stats.PID == 0 && stats.Queued == 1 })
	client.mu.Lock()
	waiting := slices.Clone(client.queue.suspects)
	client.mu.Unlock()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(waiting) != 1 || waiting[0].timer == nil || waiting[0].timer.Stop() {
		t.Error("its time limit still runs, and holds its texts")
	}
}

func TestABusyWorkerIsNotHung(t *testing.T) {
	t.Parallel()
	client := start(t, impatient(), "--latency=4") // longer than two pongs may take
	assertEmbeds(t, client)
	if client.Stats().Restarts != 0 {
		t.Error("it was killed")
	}
}

func TestIdleTimeIsNoSlowness(t *testing.T) {
	t.Parallel()
	client := start(t, impatient(), "--latency=0.3") // time for some pings
	assertEmbeds(t, client)
	client.mu.Lock()
	for _, at := range []*time.Time{
		&client.worker.health.progressAt, &client.worker.health.seenAt, &client.worker.health.countedAt,
	} {
		*at = at.Add(-time.Hour) // as if it had been idle for that long
	}
	client.mu.Unlock()
	assertEmbeds(t, client)
	if client.Stats().Restarts != 0 {
		t.Error("it was killed")
	}
}

func TestAGrandchildThatHoldsThePipesHoldsNothingUp(t *testing.T) {
	t.Parallel()
	pidFile := newFile(t)
	const program = "import os, subprocess, sys; " +
		"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'], start_new_session=True); " +
		"open(sys.argv[1], 'w').write(str(child.pid)); os._exit(78)"
	client := start(t, Options{Command: []string{python(), "-c", program, pidFile}})
	if _, err := client.Info(within(t)); !errors.Is(err, ErrWorkerStart) {
		t.Error(err)
	}
	sigkill(readPID(t, pidFile))
}

func readPID(t *testing.T, path string) int {
	t.Helper()
	told, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(string(told))
	return pid
}

func assertDies(t *testing.T, pid int) {
	t.Helper()
	until(t, "it dies", func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // its reaper is not ours
		return !isAlive(pid) || err == nil && strings.Contains(string(state), ") Z ")
	})
}

func TestAGrandchildDiesWithItsWorker(t *testing.T) {
	if isWindows {
		t.Skip("a process of Windows is killed without its children")
	}
	t.Parallel()
	pidFile := newFile(t)
	client := start(t, Options{}, once(t, "--grandchild="+pidFile, "--kill-after=0")...)
	assertEmbeds(t, client)
	assertDies(t, readPID(t, pidFile))
}

// Not parallel: it looks at all goroutines.
func TestAGrandchildThatHoldsTheInputHoldsNoWriter(t *testing.T) {
	if isWindows {
		t.Skip("a pipe of Windows cannot be closed while somebody writes")
	}
	const program = `
import json, os, subprocess, sys
id = json.loads(sys.stdin.buffer.raw.readline())["id"]
print(json.dumps({"id": id, "status": "ok", "protocol": 1, "model": "m", "fingerprint": "f", "dimension": 4}), flush=True)
if not os.read(0, 1):
    sys.exit() # the next worker, when the client is closed
grandchild = [sys.executable, "-c", "import time; time.sleep(3600)"]
child = subprocess.Popen(grandchild, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
os._exit(70)
`
	pidFile := newFile(t)
	client := start(t, Options{Command: []string{python(), "-c", program, pidFile}, MaxAttempts: 1})
	text := strings.Repeat("more than a pipe holds ", 1<<14)
	if _, err := client.Embed(within(t), []string{text}, nil); !errors.Is(err, ErrWorkerDied) {
		t.Error(err)
	}
	defer sigkill(readPID(t, pidFile))
	until(t, "the writer ends", func() bool {
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "os.(*File).Write(")
	})
}

func TestARecycleIsNoFailure(t *testing.T) {
	t.Parallel()
	client := start(t, Options{RestartBudget: 1, MaxAttempts: 1}, once(t, "--exit-after=1:79")...)
	assertEmbeds(t, client)
	assertEmbeds(t, client)
}

func TestAFloodOnStandardErrorHoldsNothingUp(t *testing.T) {
	for _, lines := range [][]string{nil, {"--stderr-no-newline"}} {
		t.Run(strings.Join(lines, ""), func(t *testing.T) {
			t.Parallel()
			client := start(t, Options{}, append(lines, "--stderr-flood=4194304")...)
			assertEmbeds(t, client)
		})
	}
}

func TestPrintsBeforeItReadyAreForgiven(t *testing.T) {
	t.Parallel()
	assertEmbeds(t, start(t, Options{}, "--garbage-before-ready=20"))
	client := start(t, Options{RestartBudget: 1}, "--garbage-before-ready=21")
	if _, err := client.Embed(within(t), texts(1), nil); !errors.Is(err, ErrCircuitOpen) {
		t.Error(err)
	}
}

func TestAnswersInPiecesArePutTogether(t *testing.T) {
	t.Parallel()
	assertEmbeds(t, start(t, Options{}, "--slow-write=97:0.0001"))
}

// Starts and restarts -----------------------------------------------------------------------------------------------

func TestAStartThatCannotSucceedIsTriedOnce(t *testing.T) {
	for _, status := range []string{"2", "78", "126", "127"} {
		t.Run(status, func(t *testing.T) {
			t.Parallel()
			client := start(t, Options{}, "--fail-start="+status)
			for range 2 {
				_, err := client.Embed(within(t), texts(1), nil)
				var failed *WorkerError
				if !errors.Is(err, ErrWorkerStart) || !errors.As(err, &failed) || failed.StderrTail != "fake worker: told to fail" ||
					strconv.Itoa(failed.Process.ExitCode()) != status {
					t.Error(err)
				}
			}
			if _, err := client.Info(within(t)); !errors.Is(err, ErrWorkerStart) {
				t.Error(err)
			}
			if restarts := client.Stats().Restarts; restarts != 0 {
				t.Errorf("%d restarts", restarts)
			}
		})
	}
}

func TestACommandThatIsNotThereIsAStartError(t *testing.T) {
	t.Parallel()
	client := start(t, Options{Command: []string{"/nowhere/embed-worker"}})
	if _, err := client.Embed(within(t), texts(1), nil); !errors.Is(err, ErrWorkerStart) {
		t.Error(err)
	}
}

func TestAWorkingDirectoryThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	client := start(t, Options{Dir: filepath.Join(t.TempDir(), "nowhere")})
	_, err := client.Embed(within(t), texts(1), nil)
	if !errors.Is(err, ErrWorkerStart) || !strings.Contains(err.Error(), "nowhere") || strings.Contains(err.Error(), python()) {
		t.Error(err)
	}
	if restarts := client.Stats().Restarts; restarts != 0 {
		t.Errorf("%d restarts", restarts)
	}
}

func TestTheCircuitOpensWhenTheBudgetIsSpentAndClosesAgain(t *testing.T) {
	t.Parallel()
	count := "--count-file=" + newFile(t)
	client := start(t, Options{RestartBudget: 3, HalfOpenAfter: time.Hour}, "--fail-start=1", "--processes=3", count)
	_, err := client.Embed(within(t), texts(1), nil)
	var open *CircuitOpenError
	if !errors.Is(err, ErrCircuitOpen) || !errors.As(err, &open) || errors.Is(err, ErrWorkerStart) || !errors.Is(open.Last, ErrWorkerStart) {
		t.Fatal(err)
	}
	if restarts := client.Stats().Restarts; restarts != 2 {
		t.Errorf("%d restarts", restarts)
	}
	client.mu.Lock()
	client.wakeUp.Reset(0) // the hour is over
	client.mu.Unlock()
	until(t, "the fourth start succeeds", func() bool {
		_, err := client.Embed(within(t), texts(1), nil)
		return err == nil
	})
}

func TestAWorkerThatIsNotReadyInTimeIsReplaced(t *testing.T) {
	t.Parallel()
	limit := 50 * time.Millisecond
	if isWindows { // not while the process is made: that leaves its pipes to the console helper of Wine
		limit = 2 * time.Second
	}
	client := start(t, Options{StartTimeout: limit, RestartBudget: 2}, "--start-delay=3600")
	_, err := client.Embed(within(t), texts(1), nil)
	var open *CircuitOpenError
	if !errors.As(err, &open) || !errors.Is(open.Last, ErrWorkerStart) || open.Last.Detail != "not ready after "+limit.String() {
		t.Error(err)
	}
	if restarts := client.Stats().Restarts; restarts != 1 {
		t.Errorf("%d restarts", restarts)
	}
}

func TestAnotherModelAfterARestartIsRefusedForGood(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--change-model", "--kill-after=1", "--count-file="+newFile(t))
	assertEmbeds(t, client)
	for range 2 {
		if _, err := client.Embed(within(t), texts(1), nil); !errors.Is(err, ErrModelChanged) {
			t.Error(err)
		}
	}
}

func TestAnotherProtocolIsRefusedForGood(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--protocol=2")
	for range 2 {
		if _, err := client.Embed(within(t), texts(1), nil); !errors.Is(err, ErrProtocolMismatch) {
			t.Error(err)
		}
	}
}

func TestTheWorkerDoesNotSeeTheHostsSecrets(t *testing.T) {
	t.Setenv("EMBED_BRIDGE_TEST_SECRET", "hunter2")
	client := start(t, Options{
		Command: []string{python(), "-c", "import os, sys; sys.stderr.write(repr(dict(os.environ))); sys.exit(78)"},
		Env:     []string{"WANTED=yes"},
	})
	var failed *WorkerError
	if _, err := client.Info(within(t)); !errors.As(err, &failed) {
		t.Fatal(err)
	}
	if tail := failed.StderrTail; strings.Contains(tail, "hunter2") || !strings.Contains(tail, "'WANTED': 'yes'") || !strings.Contains(tail, "'PATH'") {
		t.Error(tail)
	}
}

// The end -----------------------------------------------------------------------------------------------------------

func TestCloseReapsTheWorkerAndWhateverItLeft(t *testing.T) {
	const never = time.Hour // the rung that must not be needed
	for _, each := range []struct {
		stubborn []string
		patience Options
	}{
		{nil, Options{DrainTimeout: never}},
		{[]string{"--ignore-eof"}, Options{DrainTimeout: 100 * time.Millisecond, TerminateTimeout: never}},
		{[]string{"--ignore-eof", "--ignore-term"}, quick},
	} {
		t.Run(strings.Join(each.stubborn, ""), func(t *testing.T) {
			t.Parallel()
			pidFile := newFile(t)
			faults := each.stubborn
			if !isWindows {
				faults = append(faults, "--grandchild="+pidFile)
			}
			client := start(t, each.patience, faults...)
			info, err := client.Info(within(t))
			if err != nil {
				t.Fatal(err)
			}
			grandchild := 0
			if !isWindows {
				grandchild = readPID(t, pidFile)
			}
			var closers sync.WaitGroup
			for range 2 {
				closers.Add(1)
				go func() {
					defer closers.Done()
					if err := client.Close(); err != nil {
						t.Error(err)
					}
				}()
			}
			closers.Wait()
			if isAlive(info.PID) { // a zombie would be
				t.Error("the worker is not reaped")
			}
			if !isWindows {
				assertDies(t, grandchild)
			}
			if _, err := client.Embed(within(t), texts(1), nil); !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
			if err := client.Ping(within(t)); !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
	}
}

func TestCloseLetsTheWorkerFinishWhatItHas(t *testing.T) {
	t.Parallel()
	client := start(t, Options{DrainTimeout: patience}, "--reorder=2", "--max-in-flight=1") // answers one at its end only
	if _, err := client.Info(within(t)); err != nil {
		t.Fatal(err)
	}
	sent, waiting := make(chan error, 1), make(chan error, 1)
	go func() { _, err := client.Embed(within(t), texts(1), nil); sent <- err }()
	until(t, "one is sent", func() bool { return client.Stats().InFlight == 1 })
	go func() { _, err := client.Embed(within(t), texts(1), nil); waiting <- err }()
	until(t, "one waits", func() bool { return client.Stats().Queued == 1 })
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestCloseEndsWhatTheWorkerDoesNotFinish(t *testing.T) {
	t.Parallel()
	client := start(t, quick, "--latency=3600")
	ended := make(chan error, 1)
	go func() { _, err := client.Embed(within(t), texts(1), nil); ended <- err }()
	until(t, "it is sent", func() bool { return client.Stats().InFlight == 1 })
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestCloseDoesNotWaitForABackoff(t *testing.T) {
	t.Parallel()
	client := start(t, Options{BackoffInitial: time.Hour, BackoffMax: time.Hour}, "--fail-start=1")
	ended := make(chan error, 1)
	go func() { _, err := client.Embed(within(t), texts(1), nil); ended <- err }()
	until(t, "it failed", func() bool {
		client.mu.Lock()
		defer client.mu.Unlock()
		return client.wakeUp != nil
	})
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	before := runtime.NumGoroutine() // not parallel: the others wait
	for _, fault := range []string{"--say=hello", "--kill-after=0", "--fail-start=1"} {
		client, err := New(Options{
			Command:        []string{python(), "-m", "bridge_client.testing.fake_worker", fault},
			Env:            []string{"PYTHONPATH=" + root},
			BackoffInitial: time.Millisecond,
			RestartBudget:  2,
		})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = client.Embed(within(t), texts(1), nil)
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestAClientThatWasNeverUsedCloses(t *testing.T) {
	t.Parallel()
	client := start(t, Options{})
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Embed(within(t), texts(1), nil); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// The real worker ---------------------------------------------------------------------------------------------------

func TestTheRealWorkerEmbedsAndSurvivesKills(t *testing.T) {
	t.Parallel()
	client := start(t, Options{
		Command:       []string{python(), "-m", "embed_worker", "--supervised"},
		RestartBudget: 100,
	})
	info, err := client.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if info.Model != "all-MiniLM-L6-v2" || info.Dimension != 384 || info.MaxTokens != 256 || info.PID != client.Stats().PID {
		t.Errorf("%+v", info)
	}
	first := mustEmbed(t, client, "a cat sat on the mat", "a cat was sitting on the mat", "stock prices fell sharply")
	near, far := dot(first.Vector(0), first.Vector(1)), dot(first.Vector(0), first.Vector(2))
	if math.Abs(dot(first.Vector(0), first.Vector(0))-1) > 1e-5 || near < 0.8 || far > 0.3 {
		t.Errorf("similarities %v and %v", near, far)
	}
	no := false
	_, err = client.Embed(within(t), []string{"short", strings.Repeat("long ", 400)}, &EmbedOptions{Truncate: &no})
	assertRequestError(t, err, "input_too_long", 1)
	killUnderLoad(t, client, 2, func(int) error {
		_, err := client.Embed(within(t), []string{"a cat sat on the mat"}, nil)
		return err
	})
	again := mustEmbed(t, client, "a cat sat on the mat")
	if again.Fingerprint != first.Fingerprint || dot(first.Vector(0), again.Vector(0)) < 1-1e-5 {
		t.Error("other vectors after the restarts")
	}
}

func dot(a, b []float32) (sum float64) {
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

// What must not be lost by accident --------------------------------------------------------------------------------

func TestAGroupIsOnlySignalledWhileItsWorkerIsNotReaped(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("needs /proc")
	}
	original := killGroup
	defer func() { killGroup = original }()
	var reaped atomic.Int64
	killGroup = func(process *os.Process) { // not parallel: the others wait
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", process.Pid)); err != nil {
			reaped.Add(1) // the number is free, and may be another group's
		}
		original(process)
	}
	for _, faults := range [][]string{{"--kill-after=0"}, {"--exit-after=0"}, {}} {
		client := start(t, Options{MaxAttempts: 1}, faults...)
		_, _ = client.Embed(within(t), texts(1), nil)
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if count := reaped.Load(); count > 0 {
		t.Errorf("%d signals to a number that was free", count)
	}
}

func TestAStartThatIsTooLateQuotesWhatWasOnThePipe(t *testing.T) {
	t.Parallel()
	const program = "import sys, time; sys.stdout.write('Downloading 100%'); sys.stdout.flush(); time.sleep(3600)"
	client := start(t, Options{
		Command: []string{python(), "-c", program}, StartTimeout: time.Hour, RestartBudget: 1, DrainTimeout: time.Millisecond,
	})
	ended := make(chan error, 1)
	go func() { ended <- client.Ready(within(t)) }()
	until(t, "it prints", func() bool {
		client.mu.Lock()
		defer client.mu.Unlock()
		return client.worker != nil && client.worker.stdout.String() != ""
	})
	client.mu.Lock()
	client.worker.startTimer.Reset(0) // the hour is over
	client.mu.Unlock()
	if err := <-ended; !errors.Is(err, ErrCircuitOpen) || !strings.Contains(err.Error(), `"Downloading 100%"`) {
		t.Error(err)
	}
}

func TestAThousandCallsWithContextsThatEndLoseNothing(t *testing.T) {
	t.Parallel()
	client := start(t, Options{RestartBudget: 100, PingEvery: time.Hour}, "--latency=0.001")
	if err := client.Ready(within(t)); err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	var ended [3]atomic.Int64
	for number := range 1000 {
		calls.Add(1)
		go func() {
			defer calls.Done()
			ctx, cancel := within(t), func() {}
			switch number % 4 {
			case 1:
				ctx, cancel = context.WithTimeout(ctx, time.Duration(number)*time.Millisecond)
			case 2:
				ctx, cancel = context.WithCancel(ctx)
				time.AfterFunc(time.Duration(number)*time.Millisecond, cancel)
			}
			defer cancel()
			embeddings, err := client.Embed(ctx, []string{fmt.Sprintf("text %d", number%100)}, nil)
			switch {
			case err == nil:
				ended[0].Add(1)
				assertRow(t, embeddings.Vector(0), number%100)
			case errors.Is(err, ErrTimeout) && number%4 == 1:
				ended[1].Add(1)
			case errors.Is(err, context.Canceled) && number%4 == 2:
				ended[2].Add(1)
			default:
				t.Errorf("call %d: %v", number, err)
			}
		}()
	}
	calls.Wait()
	if sum := ended[0].Load() + ended[1].Load() + ended[2].Load(); sum != 1000 {
		t.Errorf("%d calls ended as they should", sum)
	}
	assertEmbeds(t, client)
	if stats := client.Stats(); stats.Restarts != 0 || stats.Queued != 0 {
		t.Errorf("%+v", stats)
	}
}

func TestTheDeathsOfOnePoisonedCallCostTheBudgetTwice(t *testing.T) {
	t.Parallel()
	// Once with others, and once alone, however often: as for every client that looks for the guilty.
	client := start(t, Options{MaxAttempts: 5, RestartBudget: 2.5}, "--poison=bad")
	if _, err := client.Embed(within(t), append(texts(5), "bad"), nil); !errors.Is(err, ErrWorkerDied) {
		t.Error(err)
	}
	assertEmbeds(t, client)
	if restarts := client.Stats().Restarts; restarts != 5 {
		t.Errorf("%d restarts", restarts)
	}
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	t.Parallel()
	client := start(t, Options{DrainTimeout: time.Hour, TerminateTimeout: time.Hour}, "--ignore-eof", "--ignore-term")
	info, err := client.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	ended := make(chan error, 1)
	go func() { ended <- client.Shutdown(ctx) }()
	select {
	case err := <-ended:
		if err != nil || isAlive(info.PID) {
			t.Errorf("%v, alive: %v", err, isAlive(info.PID))
		}
	case <-within(t).Done():
		t.Error("it waits for the worker")
		sigkill(info.PID)
	}
}

// Prompts -----------------------------------------------------------------------------------------------------------

func TestQueriesAndDocumentsGetTheModelsPrompts(t *testing.T) {
	t.Parallel()
	client := start(t, Options{
		Command: []string{python(), "-m", "embed_worker", "--model", filepath.Join(root, "tests/models/extra-prompt-options")},
	})
	info, err := client.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	query, document, empty := "query", "document", ""
	if info.Prompts[query] == info.Prompts[document] || info.DefaultPromptName != document {
		t.Fatalf("the model has no prompts of its own: %+v", info)
	}
	inputs := []string{"a cat"}
	for _, each := range []struct {
		embed   func(context.Context, []string, *EmbedOptions) (*Embeddings, error)
		options EmbedOptions
	}{
		{client.EmbedQuery, EmbedOptions{PromptName: &query}},
		{client.EmbedDocuments, EmbedOptions{PromptName: &document}},
	} {
		got, err := each.embed(within(t), inputs, &EmbedOptions{Model: info.Model})
		want, wantErr := client.Embed(within(t), inputs, &each.options)
		if err != nil || wantErr != nil || !slices.Equal(got.Vectors, want.Vectors) {
			t.Errorf("other vectors than with the prompt %s: %v, %v", *each.options.PromptName, err, wantErr)
		}
		_, err = each.embed(within(t), inputs, &EmbedOptions{Prompt: &empty})
		assertRequestError(t, err, "invalid_request", -1)
		_, err = each.embed(within(t), inputs, &EmbedOptions{Model: "another"})
		assertRequestError(t, err, "model_not_found", -1)
	}
}

func TestAModelWithoutPromptsGetsNone(t *testing.T) {
	t.Parallel()
	client := start(t, Options{})
	embeddings, err := client.EmbedQuery(within(t), []string{"text 3"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	assertRow(t, embeddings.Vector(0), 3)
}

// Hostile workers ---------------------------------------------------------------------------------------------------

func TestNoHostileAnswerIsAPanicAHangOrASuccess(t *testing.T) {
	t.Parallel()
	const program = "import json; from bridge_client.testing.hostile_worker import cases; " +
		"print(json.dumps([[name, case.get('inputs', 1), case.get('request', {}), case['then']] for name, case in cases('answers')]))"
	command := exec.Command(python(), "-c", program)
	command.Env = append(os.Environ(), "PYTHONPATH="+root)
	told, err := command.Output()
	var cases [][4]json.RawMessage
	if err = errors.Join(err, json.Unmarshal(told, &cases)); err != nil {
		t.Fatal(err)
	}
	client := start(t, Options{
		Command: []string{python(), "-m", "bridge_client.testing.hostile_worker"}, MaxAttempts: 1, RestartBudget: 10_000,
		BackoffInitial: time.Millisecond, BackoffMax: time.Millisecond, PingEvery: 100 * time.Millisecond,
	})
	for _, each := range cases {
		var name string
		var count int
		var options EmbedOptions
		var then []string
		for i, into := range []any{&name, &count, &options, &then} {
			if err := json.Unmarshal(each[i], into); err != nil {
				t.Fatal(err)
			}
		}
		inputs := make([]string, count)
		for i := range inputs {
			inputs[i] = name
		}
		embeddings, err := client.Embed(within(t), inputs, &options)
		end, refused := "ok", (*RequestError)(nil)
		switch {
		case errors.As(err, &refused):
			end = refused.Code
		case errors.Is(err, ErrWorkerDied):
			end = "worker_died"
		case err != nil:
			end = err.Error()
		case len(embeddings.Vectors) != 8*count || embeddings.Vectors[0] != 1:
			end = "other vectors"
		}
		if !slices.Contains(then, end) {
			t.Errorf("%s: %s instead of %v: %v", name, end, then, err)
		}
	}
}

// The module --------------------------------------------------------------------------------------------------------

func TestTheModuleCanBeUsedByReplaceAndByAWorkspace(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the tests were built elsewhere: there is no go here")
	}
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	const program = `package main

import (
	"context"
	"fmt"
	"os"

	"embedbridge"
)

func main() {
	client, err := embedbridge.New(embedbridge.Options{Command: os.Args[1:], Env: []string{"PYTHONPATH=" + os.Getenv("ROOT")}})
	if err != nil {
		panic(err)
	}
	defer client.Close()
	embeddings, err := client.EmbedQuery(context.Background(), []string{"text 0"}, nil)
	fmt.Print(embeddings.Dimension, err)
}
`
	for name, steps := range map[string][][]string{ // as the README says
		"replace":   {{"mod", "init", "host"}, {"mod", "edit", "-require=embedbridge@v0.0.0", "-replace=embedbridge=" + here}},
		"workspace": {{"mod", "init", "host"}, {"work", "init", ".", here}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			if err := os.WriteFile(filepath.Join(folder, "main.go"), []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			steps := append(steps, []string{"run", ".", python(), "-m", "bridge_client.testing.fake_worker"})
			var told []byte
			var err error // of this subtest: the two run side by side
			for _, step := range steps {
				command := exec.Command("go", step...)
				command.Dir = folder
				command.Env = append(os.Environ(), "ROOT="+root, "GOFLAGS=", "GOPROXY=off")
				if told, err = command.Output(); err != nil {
					t.Fatalf("go %v: %v: %s", step, err, err.(*exec.ExitError).Stderr)
				}
			}
			if string(told) != "8 <nil>" {
				t.Errorf("%s", told)
			}
		})
	}
}
