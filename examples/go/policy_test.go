package embedbridge

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The policy file is shared by the clients of all languages: this one is held to it.

type policyCase struct {
	Name    string
	System  string
	Then    string
	Numbers map[string]float64

	// environment
	Host, Option, Passed map[string]string
	// ends
	Signal      string
	Status      int64
	KilledFor   string `json:"killed_for"`
	Cause       string
	BlamesInput bool `json:"blames_input"`
	IsPermanent bool `json:"is_permanent"`
	// restarts
	Lives []struct {
		ReadyS          *float64 `json:"ready_s"`
		UsefulS         *float64 `json:"useful_s"`
		GoneS           float64  `json:"gone_s"`
		IsRecycle       bool     `json:"is_recycle"`
		IsInvestigation bool     `json:"is_investigation"`
		IsCharged       *bool    `json:"is_charged"`
		Jitter          float64
		Then            map[string]float64
	}
	// health
	Events []struct {
		AtS          float64 `json:"at_s"`
		On           string
		IsBusy       bool  `json:"is_busy"`
		MicroBatches int64 `json:"micro_batches"`
		Then         string
	}
	// pieces
	InputBytes    []int    `json:"input_bytes"`
	InputRepeated [][2]int `json:"input_repeated"`
	Pieces        [][2]int
	// commands
	Given, Started []string
	// prompts
	Prompts         map[string]string
	Query, Document *string
}

type policyTable struct{ Cases []policyCase }

type policyFile struct {
	Numbers       map[string]float64
	DefaultLimits map[string]int `json:"default_limits"`
	Environment   struct {
		Passed    []string
		ByDefault map[string]string `json:"by_default"`
		policyTable
	}
	Ends, Restarts, Health, Pieces, Commands, Prompts policyTable
}

func policy(t *testing.T) (file policyFile) {
	t.Helper()
	raw, err := os.ReadFile(filepath.FromSlash("../../bridge_client/testing/conformance/policy.json"))
	if err != nil {
		t.Skip("outside of its repository: ", err)
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

func asSeconds(s float64) time.Duration { return time.Duration(math.Round(s * 1e9)) }

func (o *Options) numbers() map[string]float64 {
	return map[string]float64{
		"request_timeout_s": o.RequestTimeout.Seconds(), "start_timeout_s": o.StartTimeout.Seconds(),
		"drain_s": o.DrainTimeout.Seconds(), "terminate_s": o.TerminateTimeout.Seconds(),
		"max_attempts": float64(o.MaxAttempts), "restart_budget": o.RestartBudget,
		"restart_forgive_s": o.RestartForgive.Seconds(), "backoff_initial_s": o.BackoffInitial.Seconds(),
		"backoff_max_s": o.BackoffMax.Seconds(), "half_open_initial_s": o.HalfOpenAfter.Seconds(),
		"half_open_max_s": o.HalfOpenMax.Seconds(), "ping_every_s": o.PingEvery.Seconds(),
		"pong_timeout_s": o.PongTimeout.Seconds(), "stuck_after_s": o.StuckAfter.Seconds(),
	}
}

func TestEveryNumberIsTheOneOfThePolicy(t *testing.T) {
	file := policy(t)
	ours := defaults().numbers()
	for name, value := range map[string]float64{
		"piece_tokens": pieceTokens, "piece_bytes": pieceBytes, "bytes_per_token": bytesPerToken,
		"special_tokens": specialTokens, "most_tokens": mostTokens, "short_tokens": shortTokens,
		"window_requests": windowPieces, "window_tokens": windowTokens, "window_bytes": windowBytes,
		"max_answer_bytes": maxAnswerBytes, "max_dimension": maxDimension, "stderr_tail_bytes": stderrTailBytes,
		"nonsense_before_ready": mostNonsense, "pipe_grace_s": pipeGrace.Seconds(), "pipe_lost_s": pipeLost.Seconds(),
		"longest_drain_s": longestDrain.Seconds(), "backoff_jitter": jitter, "healthy_s": healthyAfter.Seconds(),
		"recycle_every_s": recycleEvery.Seconds(), "pong_misses": pongMisses, "slow_factor": slowFactor,
		"average_weight": averageWeight,
	} {
		ours[name] = value
	}
	for name, value := range file.Numbers {
		if told, isThere := ours[name]; !isThere || told != value {
			t.Errorf("%s is %v, not %v", name, told, value)
		}
	}
	if len(ours) != len(file.Numbers) {
		t.Errorf("%d numbers instead of %d", len(ours), len(file.Numbers))
	}
	limits := map[string]int{
		"max_line_bytes": defaultLimits.MaxLineBytes, "max_inputs": defaultLimits.MaxInputs,
		"max_text_bytes": defaultLimits.MaxTextBytes, "max_in_flight": defaultLimits.MaxInFlight,
		"max_in_flight_bytes": defaultLimits.MaxInFlightBytes,
	}
	for name, value := range file.DefaultLimits {
		if limits[name] != value {
			t.Errorf("%s is %d, not %d", name, limits[name], value)
		}
	}
}

func entries(variables map[string]string) (entries []string) {
	for name, value := range variables {
		entries = append(entries, name+"="+value)
	}
	slices.Sort(entries)
	return entries
}

func TestTheEnvironmentIsTheOneOfThePolicy(t *testing.T) {
	file := policy(t)
	if !slices.Equal(passedEnvironment, file.Environment.Passed) {
		t.Errorf("the allow-list is %v", passedEnvironment)
	}
	if !slices.Equal(environmentByDefault, entries(file.Environment.ByDefault)) {
		t.Errorf("by default %v", environmentByDefault)
	}
	for _, each := range file.Environment.Cases {
		passed := environmentOf(entries(each.Host), entries(each.Option), each.System == "windows")
		slices.Sort(passed)
		if !slices.Equal(passed, entries(each.Passed)) {
			t.Errorf("%s: %v", each.Name, passed)
		}
	}
}

func TestAnEndMeansWhatThePolicySays(t *testing.T) {
	for _, each := range policy(t).Ends.Cases {
		killedFor := map[string]*WorkerError{
			"hung":           hungError(""),
			"broke_protocol": brokenProtocolError(""),
			"start_timeout":  startError(""),
			"model_changed":  modelChangedError(&Info{}, &Info{}),
		}[each.KilledFor]
		if killedFor == nil && each.KilledFor != "" {
			t.Fatalf("%s is unknown", each.KilledFor)
		}
		ended := causeOf(each.Status, each.Signal, each.System == "windows")
		err := errorOfEnd(ended, killedFor, true)
		if err.permanent != each.IsPermanent || err.BlamesInput != each.BlamesInput {
			t.Errorf("%+v: %+v", each, err)
		}
		if isOurs := each.Cause == each.KilledFor && killedFor != nil; isOurs != (err == killedFor) ||
			!isOurs && string(ended) != each.Cause {
			t.Errorf("%+v: %s, %v", each, ended, err)
		}
	}
}

func TestRestartsAreThoseOfThePolicy(t *testing.T) {
	for _, each := range policy(t).Restarts.Cases {
		options := defaults()
		for name, value := range each.Numbers {
			switch name {
			case "restart_budget":
				options.RestartBudget = value
			case "restart_forgive_s":
				options.RestartForgive = asSeconds(value)
			case "backoff_initial_s":
				options.BackoffInitial = asSeconds(value)
			case "half_open_initial_s":
				options.HalfOpenAfter = asSeconds(value)
			default:
				t.Fatalf("%s is unknown", name)
			}
		}
		r, now := restarts{options: options}, time.Unix(1_000_000, 0)
		for number, lived := range each.Lives {
			was := life{recycle: lived.IsRecycle, investigation: lived.IsInvestigation}
			was.free = lived.IsCharged != nil && !*lived.IsCharged
			if lived.ReadyS != nil {
				was.readySince = now.Add(asSeconds(*lived.ReadyS))
			}
			if lived.UsefulS != nil {
				was.usefulSince = now.Add(asSeconds(*lived.UsefulS))
			}
			now = now.Add(asSeconds(lived.GoneS))
			wait, open := r.after(was, now, lived.Jitter)
			decision := "restart_in_s"
			if open {
				decision = "refuse_for_s"
			}
			if want, isSo := lived.Then[decision]; !isSo || math.Abs(wait.Seconds()-want) > 1e-6 {
				t.Errorf("%s: life %d: %s %v instead of %v", each.Name, number, decision, wait, lived.Then)
			}
			now = now.Add(wait)
		}
	}
}

func TestHangsAreThoseOfThePolicy(t *testing.T) {
	epoch := time.Unix(1_000_000, 0)
	for _, each := range policy(t).Health.Cases {
		h := newHealth(epoch, defaults())
		for _, event := range each.Events {
			now := epoch.Add(asSeconds(event.AtS))
			switch event.On {
			case "work":
				h.workBegan(now)
			case "line":
				h.received(now)
			case "answer":
				h.received(now)
				h.embedded(now)
			case "pong":
				h.received(now)
				h.ponged(now, event.MicroBatches, event.IsBusy)
			case "check":
				ping, hung := h.check(now, event.IsBusy)
				verdict := map[string]string{
					"": "nothing", "it gave no sign of life": "silent", "it made no progress with what it had": "stuck",
				}[hung]
				if ping {
					verdict = "ping"
				}
				if verdict != event.Then {
					t.Errorf("%s: at %v s %s instead of %s", each.Name, event.AtS, verdict, event.Then)
				}
			default:
				t.Fatalf("%s is unknown", event.On)
			}
		}
	}
}

func TestPiecesAreThoseOfThePolicy(t *testing.T) {
	for _, each := range policy(t).Pieces.Cases {
		for _, size := range each.InputBytes {
			each.InputRepeated = append(each.InputRepeated, [2]int{1, size})
		}
		var inputs []string
		for _, repeated := range each.InputRepeated {
			for range repeated[0] {
				inputs = append(inputs, strings.Repeat("x", repeated[1]))
			}
		}
		_, pieces, err := newJob(inputs, EmbedOptions{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var ranges [][2]int
		for _, p := range pieces {
			ranges = append(ranges, [2]int{p.start, p.stop})
		}
		if !slices.Equal(ranges, each.Pieces) {
			t.Errorf("%s: %v", each.Name, ranges)
		}
	}
}

func TestCommandsAreThoseOfThePolicy(t *testing.T) {
	for _, each := range policy(t).Commands.Cases {
		if options, err := (Options{Command: each.Given}).withDefaults(); err != nil || !slices.Equal(options.Command, each.Started) {
			t.Errorf("%v: %v, %v", each.Given, options.Command, err)
		}
	}
}

func TestPromptsAreThoseOfThePolicy(t *testing.T) {
	for _, each := range policy(t).Prompts.Cases {
		for _, of := range []struct {
			names []string
			want  *string
		}{{queryPrompts, each.Query}, {documentPrompts, each.Document}} {
			got := EmbedOptions{}.prompted(each.Prompts, of.names)
			isEmpty := got.PromptName == nil && got.Prompt != nil && *got.Prompt == ""
			isNamed := got.Prompt == nil && got.PromptName != nil && of.want != nil && *got.PromptName == *of.want
			if of.want == nil && !isEmpty || of.want != nil && !isNamed {
				t.Errorf("%v: %+v instead of %v", each.Prompts, got, of.want)
			}
		}
	}
}
