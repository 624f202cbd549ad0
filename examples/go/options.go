package embedbridge

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
	"unicode/utf8"
)

// Options are the settings of a [Client]. The zero value of a field means its default. A duration may be as long as it
// likes: math.MaxInt64 is never.
type Options struct {
	// Command is the worker's command line; no shell reads it. --supervised is added where it is missing: such a worker
	// leaves when its host has died. Default: embed-worker.
	Command []string
	// Env is set in the worker's environment ("NAME=value"), beside the variables that a locale, a home, a temporary
	// folder, a linker and an accelerator need. Nothing else of the host's is passed on.
	Env []string
	// Dir is the worker's working directory. Default: the host's.
	Dir string
	// Stderr receives a copy of what the worker writes to standard error; a Writer that blocks holds the worker up.
	// Default: nothing, but for the tail that a WorkerError carries.
	Stderr io.Writer

	// StartTimeout is how long a worker may take until it answers info. Default: 60 s.
	StartTimeout time.Duration
	// RequestTimeout ends a call whose context has no deadline: it counts for each request on the wire, from being sent
	// first, so that it does not limit how large a call is. Default: 120 s.
	RequestTimeout time.Duration
	// MaxAttempts is how often one request is sent in all when workers die with it. Default: 3.
	MaxAttempts int

	// RestartBudget is how many failures may come together: a bucket that every crash, hang and failed start raises by
	// one; when it is full the client gives up. Default: 5.
	RestartBudget float64
	// RestartForgive is the time of useful service that takes one failure out of the bucket. Default: 60 s.
	RestartForgive time.Duration
	// BackoffInitial is the wait before a restart; it doubles with every failure in a row, up to BackoffMax, and is
	// varied by a fifth. After a healthy minute there is none. Defaults: 0.2 s and 30 s.
	BackoffInitial, BackoffMax time.Duration
	// HalfOpenAfter is how long calls are refused once the budget is spent; then one start is tried. It doubles, up to
	// HalfOpenMax. Defaults: 60 s and 10 min.
	HalfOpenAfter, HalfOpenMax time.Duration

	// PingEvery is the silence after which the worker is pinged. Default: 5 s.
	PingEvery time.Duration
	// PongTimeout is how long a ping may go without any sign of life; two in a row are a hang. Default: 10 s.
	PongTimeout time.Duration
	// StuckAfter is how long the worker may finish nothing while it has work; a worker that is slow by nature gets
	// twenty times its average. Default: 60 s.
	StuckAfter time.Duration

	// DrainTimeout is how long Close waits for a worker to finish before it sends SIGTERM. Default: 5 s.
	DrainTimeout time.Duration
	// TerminateTimeout is how long Close waits after SIGTERM before it sends SIGKILL; a worker that has not disappeared
	// so long and 5 s after that is given up. Default: 2 s.
	TerminateTimeout time.Duration
}

const longestWait = 50 * 365 * 24 * time.Hour // sums of a few of them are still durations

func (o Options) withDefaults() (Options, error) {
	if o.Command == nil {
		o.Command = []string{"embed-worker"}
	}
	if len(o.Command) == 0 || o.Command[0] == "" {
		return o, errors.New("embedbridge: Command is empty")
	}
	o.Command = supervised(o.Command)
	for _, each := range []struct {
		value     *time.Duration
		byDefault time.Duration
	}{
		{&o.StartTimeout, 60 * time.Second},
		{&o.RequestTimeout, 120 * time.Second},
		{&o.RestartForgive, 60 * time.Second},
		{&o.BackoffInitial, 200 * time.Millisecond},
		{&o.BackoffMax, 30 * time.Second},
		{&o.HalfOpenAfter, 60 * time.Second},
		{&o.HalfOpenMax, 600 * time.Second},
		{&o.PingEvery, 5 * time.Second},
		{&o.PongTimeout, 10 * time.Second},
		{&o.StuckAfter, 60 * time.Second},
		{&o.DrainTimeout, 5 * time.Second},
		{&o.TerminateTimeout, 2 * time.Second},
	} {
		if *each.value < 0 {
			return o, fmt.Errorf("embedbridge: a duration of Options is negative: %v", *each.value)
		}
		if *each.value == 0 {
			*each.value = each.byDefault
		}
		*each.value = min(*each.value, longestWait)
	}
	if o.MaxAttempts < 0 || o.RestartBudget < 0 || math.IsNaN(o.RestartBudget) {
		return o, errors.New("embedbridge: MaxAttempts or RestartBudget is not a number of at least 0")
	}
	if o.MaxAttempts == 0 {
		o.MaxAttempts = 3
	}
	if o.RestartBudget == 0 {
		o.RestartBudget = 5
	}
	return o, nil
}

// supervised returns a command that makes the worker watch its host.
func supervised(command []string) []string {
	const flag = "--supervised"
	if slices.Contains(command, flag) {
		return command
	}
	return append(slices.Clone(command), flag)
}

// EmbedOptions are what one call may ask for. What is left out is as the model's folder says.
type EmbedOptions struct {
	// Model is the name of another model that the worker has loaded.
	Model string `json:"model,omitempty"`
	// PromptName names one of the model's prompts, such as "query"; it excludes Prompt.
	PromptName *string `json:"prompt_name,omitempty"`
	// Prompt is a literal prefix of every input.
	Prompt *string `json:"prompt,omitempty"`
	// Dimensions keeps that many numbers of each vector (Matryoshka). Default: all.
	Dimensions *int `json:"dimensions,omitempty"`
	// Normalize says whether vectors get unit length.
	Normalize *bool `json:"normalize,omitempty"`
	// Truncate false makes an input over the model's limit an error instead of cutting it.
	Truncate *bool `json:"truncate,omitempty"`
	// Precision is how the vectors come: Float32, Float16 or Ubinary.
	Precision Precision `json:"-"`
}

// Precision is what numbers vectors are made of. A database that stores halves or bits gets them from the worker, in half or
// a thirty-second of the bytes.
type Precision int

const (
	Float32 Precision = iota // into Embeddings.Vectors: the default
	Float16                  // rounded to halves, into Embeddings.Float16
	Ubinary                  // the signs, packed, into Embeddings.Ubinary
)

var precisionFormats = []string{Float32: "base64", Float16: "base64_float16", Ubinary: "base64_ubinary"}

func (p Precision) format() string { return precisionFormats[p] }

// check refuses what no line can carry, and what would leave the dimension of an answer open.
func (o *EmbedOptions) check() error {
	for name, text := range map[string]*string{"Model": &o.Model, "Prompt": o.Prompt, "PromptName": o.PromptName} {
		if text != nil && !utf8.ValidString(*text) {
			return &RequestError{Code: "invalid_request", Message: name + " is not UTF-8", Index: -1}
		}
	}
	if o.Precision < 0 || int(o.Precision) >= len(precisionFormats) {
		message := fmt.Sprintf("Precision is %d, none of Float32, Float16 and Ubinary", o.Precision)
		return &RequestError{Code: "invalid_request", Message: message, Index: -1}
	}
	if o.Dimensions != nil && *o.Dimensions < 1 {
		message := fmt.Sprintf("Dimensions is %d, not at least 1", *o.Dimensions)
		return &RequestError{Code: "invalid_request", Message: message, Index: -1}
	}
	return nil
}

// Names of prompts that sentence-transformers uses, in the order in which they are looked for.
var (
	queryPrompts    = []string{"query"}
	documentPrompts = []string{"document", "passage", "corpus"}
)

// prompted asks for the first of the prompts that the model has a text for, and for the empty one where it has none: its
// default prompt may be that of the other side.
func (o EmbedOptions) prompted(prompts map[string]string, names []string) EmbedOptions {
	for _, name := range names {
		if prompts[name] != "" {
			o.PromptName = &name
			return o
		}
	}
	o.Prompt = new(string)
	return o
}
