// Command conformance-adapter drives a Client for the conformance suite: calls as JSON lines in, outcomes as JSON lines
// out. docs/hosts.md has the contract.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"embedbridge"
)

type settings struct {
	RequestTimeoutS float64  `json:"request_timeout_s"`
	StartTimeoutS   float64  `json:"start_timeout_s"`
	MaxRestarts     *int     `json:"max_restarts"`
	RestartWindowS  *float64 `json:"restart_window_s"`
	BackoffInitialS float64  `json:"backoff_initial_s"`
	BackoffMaxS     float64  `json:"backoff_max_s"`
	PingEveryS      float64  `json:"ping_every_s"`
	PongTimeoutS    float64  `json:"pong_timeout_s"`
	StuckAfterS     float64  `json:"stuck_after_s"`
	DrainS          float64  `json:"drain_s"`
	TerminateS      float64  `json:"terminate_s"`
	MaxAttempts     int      `json:"max_attempts"`
}

type call struct {
	Call     int      `json:"call"`
	Op       string   `json:"op"`
	Inputs   []string `json:"inputs"`
	TimeoutS *float64 `json:"timeout_s"`
	Target   int      `json:"target"`

	Precision string `json:"precision"`
	Offsets   bool   `json:"offsets"`
	embedbridge.EmbedOptions
}

var precisions = map[string]embedbridge.Precision{
	"": embedbridge.Float32, "float32": embedbridge.Float32, "float16": embedbridge.Float16, "ubinary": embedbridge.Ubinary,
}

type outcome map[string]any

type adapter struct {
	client  *embedbridge.Client
	mu      sync.Mutex
	cancels map[int]context.CancelFunc
	calls   sync.WaitGroup
}

func main() {
	client, err := embedbridge.New(options())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	a := &adapter{client: client, cancels: map[int]context.CancelFunc{}}
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		a.begin(line)
	}
	a.calls.Wait()
	if err := client.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func options() embedbridge.Options {
	var command []string
	var s settings
	given := os.Getenv("CONFORMANCE_OPTIONS")
	if given == "" {
		given = "{}"
	}
	if err := errors.Join(
		json.Unmarshal([]byte(os.Getenv("CONFORMANCE_WORKER")), &command),
		json.Unmarshal([]byte(given), &s),
	); err != nil {
		fmt.Fprintln(os.Stderr, "CONFORMANCE_WORKER or CONFORMANCE_OPTIONS:", err)
		os.Exit(2)
	}
	o := embedbridge.Options{
		Command:          command,
		RequestTimeout:   seconds(s.RequestTimeoutS),
		StartTimeout:     seconds(s.StartTimeoutS),
		BackoffInitial:   seconds(s.BackoffInitialS),
		BackoffMax:       seconds(s.BackoffMaxS),
		PingEvery:        seconds(s.PingEveryS),
		PongTimeout:      seconds(s.PongTimeoutS),
		StuckAfter:       seconds(s.StuckAfterS),
		DrainTimeout:     seconds(s.DrainS),
		TerminateTimeout: seconds(s.TerminateS),
		MaxAttempts:      s.MaxAttempts,
	}
	if path, isSet := os.LookupEnv("PYTHONPATH"); isSet {
		o.Env = []string{"PYTHONPATH=" + path} // the suite's worker may be a module of a checkout
	}
	if s.MaxRestarts != nil { // the budget is a bucket of failures that leaks, and no window
		window := 60.0
		if s.RestartWindowS != nil {
			window = *s.RestartWindowS
		}
		o.RestartBudget = float64(*s.MaxRestarts + 1)
		o.RestartForgive = seconds(window / float64(max(1, *s.MaxRestarts)))
	}
	return o
}

func seconds(s float64) time.Duration { return time.Duration(min(s*float64(time.Second), 1<<62)) }

// begin starts a call; it ends with one line, whenever that is.
func (a *adapter) begin(line []byte) {
	var c call
	if err := json.Unmarshal(line, &c); err != nil {
		say(c.Call, outcome{"ok": false, "error": "invalid_argument", "retryable": false, "message": err.Error()})
		return
	}
	var ctx context.Context
	var cancel context.CancelFunc
	if c.TimeoutS != nil {
		ctx, cancel = context.WithTimeout(context.Background(), seconds(*c.TimeoutS))
	} else {
		ctx, cancel = context.WithCancel(context.Background())
	}
	a.mu.Lock()
	a.cancels[c.Call] = cancel
	a.mu.Unlock()
	a.calls.Add(1)
	go func() {
		defer a.calls.Done()
		told, err := a.carryOut(ctx, c)
		cancel()
		if err != nil {
			told = failure(err)
		}
		say(c.Call, told)
	}()
}

func (a *adapter) carryOut(ctx context.Context, c call) (outcome, error) {
	switch c.Op {
	case "embed":
		precision, isKnown := precisions[c.Precision]
		if !isKnown {
			precision = -1 // there is no other, and the client is to say so
		}
		c.EmbedOptions.Precision = precision
		embeddings, err := a.client.Embed(ctx, c.Inputs, &c.EmbedOptions)
		if err != nil {
			return nil, err
		}
		return outcome{
			"ok": true, "count": embeddings.Count, "dimension": embeddings.Dimension,
			"vectors_base64": encode(embeddings), "tokens": embeddings.Tokens, "truncated": embeddings.Truncated,
			"model": embeddings.Model, "fingerprint": embeddings.Fingerprint,
		}, nil
	case "tokenize":
		options := embedbridge.TokenizeOptions{
			Model: c.Model, PromptName: c.PromptName, Prompt: c.Prompt, Truncate: c.Truncate, Offsets: c.Offsets,
		}
		found, err := a.client.Tokenize(ctx, c.Inputs, &options)
		if err != nil {
			return nil, err
		}
		told := outcome{
			"ok": true, "count": len(found.Tokens), "tokens": found.Tokens, "truncated": found.Truncated,
			"model": found.Model, "fingerprint": found.Fingerprint,
		}
		if c.Offsets {
			told["offsets"] = found.Offsets
		}
		return told, nil
	case "info":
		info, err := a.client.Info(ctx)
		return outcome{
			"ok": true, "model": info.Model, "fingerprint": info.Fingerprint, "dimension": info.Dimension,
			"max_tokens": info.MaxTokens, "protocol": info.Protocol, "pid": info.PID,
		}, err
	case "ping":
		return outcome{"ok": true}, a.client.Ping(ctx)
	case "cancel":
		a.mu.Lock()
		if cancel := a.cancels[c.Target]; cancel != nil {
			cancel()
		}
		a.mu.Unlock()
		return outcome{"ok": true}, nil
	case "stats":
		stats := a.client.Stats()
		told := outcome{"ok": true, "restarts": stats.Restarts, "pid": stats.PID}
		if stats.PID == 0 {
			told["pid"] = nil
		}
		return told, nil
	case "close":
		return outcome{"ok": true}, a.client.Close()
	default:
		return outcome{"ok": false, "error": "invalid_argument", "retryable": false, "message": "no such op"}, nil
	}
}

var kinds = []struct {
	err  error
	name string
}{
	{embedbridge.ErrTimeout, "timeout"},
	{context.Canceled, "cancelled"},
	{embedbridge.ErrClosed, "closed"},
	{embedbridge.ErrWorkerStart, "start"},
	{embedbridge.ErrWorkerDied, "worker_died"},
	{embedbridge.ErrWorkerHung, "worker_hung"},
	{embedbridge.ErrProtocolMismatch, "protocol_mismatch"},
	{embedbridge.ErrModelChanged, "model_changed"},
	{embedbridge.ErrCircuitOpen, "circuit_open"},
}

func failure(err error) outcome {
	told := outcome{"ok": false, "error": "invalid_argument", "retryable": false, "message": err.Error()}
	for _, kind := range kinds {
		if errors.Is(err, kind.err) {
			told["error"] = kind.name
		}
	}
	var request *embedbridge.RequestError
	if errors.As(err, &request) {
		told["error"], told["code"], told["retryable"] = "request", request.Code, request.Retryable
		if request.Index >= 0 {
			told["index"] = request.Index
		}
	}
	return told
}

func encode(embeddings *embedbridge.Embeddings) string {
	raw := embeddings.Ubinary // one of the three
	for _, value := range embeddings.Vectors {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(value))
	}
	for _, bits := range embeddings.Float16 {
		raw = binary.LittleEndian.AppendUint16(raw, bits)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

var output sync.Mutex

func say(number int, told outcome) {
	told["call"] = number
	line, err := json.Marshal(told)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	_, _ = os.Stdout.Write(append(line, '\n')) // nobody reads any more: the end of input follows
}
