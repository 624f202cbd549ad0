package embedbridge

import (
	"errors"
	"io"
	"os"
	"strings"
	"time"
)

// Options are the settings of a Client. The zero value of a field means its default.
type Options struct {
	// Command is the worker's whole command line; no shell reads it. Default: embed-worker --supervised.
	// Keep --supervised in your own: such a worker leaves when its host has died.
	Command []string
	// Env is set in the worker's environment ("NAME=value"), beside the few variables that a worker needs from the
	// host's (PATH, HOME, the locale, temporary folders, OMP_*, ORT_*, EMBED_WORKER_*). Nothing else is passed on.
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
	RestartBudget int
	// RestartForgive is the time of useful service that takes one failure out of the bucket. Default: 60 s.
	RestartForgive time.Duration
	// BackoffInitial is the wait before a restart; it doubles with every failure in a row, up to BackoffMax, and is
	// varied by a fifth. After a healthy minute there is none. Defaults: 0.2 s and 30 s.
	BackoffInitial, BackoffMax time.Duration
	// HalfOpenAfter is how long calls are refused once the budget is spent; then one start is tried. It doubles, up to
	// ten times as long. Default: 60 s.
	HalfOpenAfter time.Duration

	// PingEvery is the silence after which the worker is pinged. Default: 5 s.
	PingEvery time.Duration
	// PongTimeout is how long a ping may go without any sign of life; two in a row are a hang. Default: 10 s.
	PongTimeout time.Duration
	// StuckAfter is how long the worker may finish nothing while it has work; a worker that is slow by nature gets
	// twenty times its average. Default: 60 s.
	StuckAfter time.Duration

	// DrainTimeout is how long Close waits for a worker to finish before it sends SIGTERM. Default: 5 s.
	DrainTimeout time.Duration
	// TerminateTimeout is how long Close waits after SIGTERM before it sends SIGKILL. Default: 2 s.
	TerminateTimeout time.Duration
}

func (o Options) withDefaults() (Options, error) {
	if o.Command == nil {
		o.Command = []string{"embed-worker", "--supervised"}
	}
	if len(o.Command) == 0 || o.Command[0] == "" {
		return o, errors.New("embedbridge: Command is empty")
	}
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
		{&o.PingEvery, 5 * time.Second},
		{&o.PongTimeout, 10 * time.Second},
		{&o.StuckAfter, 60 * time.Second},
		{&o.DrainTimeout, 5 * time.Second},
		{&o.TerminateTimeout, 2 * time.Second},
	} {
		if *each.value < 0 {
			return o, errors.New("embedbridge: a duration of Options is negative")
		}
		if *each.value == 0 {
			*each.value = each.byDefault
		}
	}
	if o.MaxAttempts < 0 || o.RestartBudget < 0 {
		return o, errors.New("embedbridge: MaxAttempts or RestartBudget is negative")
	}
	if o.MaxAttempts == 0 {
		o.MaxAttempts = 3
	}
	if o.RestartBudget == 0 {
		o.RestartBudget = 5
	}
	return o, nil
}

// environment returns what the worker gets of the host's environment, and what was set for it.
func (o *Options) environment() []string {
	var passed []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch name = strings.ToUpper(name); name {
		case "PATH", "HOME", "LANG", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT":
			passed = append(passed, entry)
		default:
			for _, prefix := range []string{"LC_", "OMP_", "ORT_", "EMBED_WORKER_"} {
				if strings.HasPrefix(name, prefix) {
					passed = append(passed, entry)
				}
			}
		}
	}
	return append(passed, o.Env...)
}

// EmbedOptions are what one call of Embed may ask for. What is left out is as the model's folder says.
type EmbedOptions struct {
	// Model is the name of another model that the worker has loaded.
	Model string `json:"model,omitempty"`
	// PromptName names one of the model's prompts, such as "query"; it excludes Prompt.
	PromptName *string `json:"prompt_name,omitempty"`
	// Prompt is a literal prefix of every text.
	Prompt *string `json:"prompt,omitempty"`
	// Dimensions keeps that many numbers of each vector (Matryoshka). Default: all.
	Dimensions *int `json:"dimensions,omitempty"`
	// Normalize says whether vectors get unit length.
	Normalize *bool `json:"normalize,omitempty"`
	// Truncate false makes a text over the model's limit an error instead of cutting it.
	Truncate *bool `json:"truncate,omitempty"`
}
