// Package embedbridge embeds texts through a worker process that it starts, supervises and restarts.
//
//	client, err := embedbridge.New(embedbridge.Options{})
//	if err != nil { … }
//	defer client.Close()
//	documents, err := client.EmbedDocuments(ctx, []string{"hello", "world"}, nil)
//	query, err := client.EmbedQuery(ctx, []string{"a greeting"}, nil)
//
// A [Client] is safe for concurrent use; concurrent calls are pipelined over one worker, so many small calls at once are
// as fast as a large one. Requests that were in flight when a worker died are sent again, because embedding is a pure
// function, and every call ends exactly once: with its vectors or with one error.
//
// Every call takes a context, and ends when that does; the worker is then told to drop what it has not done. Errors are
// told apart with [errors.Is] and [errors.As]: see [RequestError], [WorkerError] and [ErrTimeout].
package embedbridge

import (
	"context"
	"sync"
	"time"
)

// Client keeps one worker alive. The worker starts with the first call.
type Client struct {
	options Options

	mu           sync.Mutex
	worker       *worker // nil before the first call, between two processes, and at the end
	queue        queue
	restarts     restarts
	investigated bool              // the deaths of the suspects have cost the budget once
	wakeUp       *time.Timer       // the next start, while there is no worker
	failure      error             // what calls are refused with, while they are
	expected     *Info             // what every worker must serve, since the first was ready
	fingerprints map[string]string // by model: the vector spaces that were served
	spawned      int
	lastID       int64 // ids are never used again
	closing      bool
	changed      chan struct{} // closed, and replaced, when the worker becomes ready or calls are refused
	closed       chan struct{}
	closeError   error
}

// New makes a client; nothing is started yet. Call [Client.Ready] to start the worker early.
func New(options Options) (*Client, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{
		options:      options,
		fingerprints: map[string]string{},
		changed:      make(chan struct{}),
		closed:       make(chan struct{}),
	}
	c.restarts.options = &c.options
	return c, nil
}

// Embed returns a vector for each input. A large call is cut into pieces that travel ahead of each other. options may be
// nil. The context's deadline is for the whole call; when it ends, the worker is told to drop what it has not done.
//
// Most models want different prompts for queries and for documents: [Client.EmbedQuery] and [Client.EmbedDocuments] use
// them, Embed the model's default.
func (c *Client) Embed(ctx context.Context, inputs []string, options *EmbedOptions) (*Embeddings, error) {
	var o EmbedOptions
	if options != nil {
		o = *options
	}
	j, err := c.carryOut(ctx, inputs, o, nil)
	if err != nil {
		return nil, err
	}
	return j.result, nil
}

// carryOut has a job done, and returns it with its result.
func (c *Client) carryOut(ctx context.Context, inputs []string, o EmbedOptions, tokenize *TokenizeOptions) (*job, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	j, pieces, err := newJob(inputs, o, tokenize)
	if err != nil {
		return nil, err
	}
	_, j.hasDeadline = ctx.Deadline()
	c.mu.Lock()
	err = c.begin()
	if err == nil {
		for _, p := range pieces {
			c.queue.push(p)
		}
		c.dispatch()
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		c.mu.Lock()
		c.end(j, contextError(ctx))
		c.dispatch()
		c.mu.Unlock()
	}
	return j, j.err
}

// EmbedQuery embeds what is searched for: with the model's prompt "query", or with none where it has none. options must
// not choose a prompt.
func (c *Client) EmbedQuery(ctx context.Context, inputs []string, options *EmbedOptions) (*Embeddings, error) {
	return c.embedPrompted(ctx, inputs, options, queryPrompts)
}

// EmbedDocuments embeds what is found: with the model's prompt "document", "passage" or "corpus", or with none where it
// has none. options must not choose a prompt.
func (c *Client) EmbedDocuments(ctx context.Context, inputs []string, options *EmbedOptions) (*Embeddings, error) {
	return c.embedPrompted(ctx, inputs, options, documentPrompts)
}

func (c *Client) embedPrompted(
	ctx context.Context, inputs []string, options *EmbedOptions, names []string,
) (*Embeddings, error) {
	var o EmbedOptions
	if options != nil {
		o = *options
	}
	if o.Prompt != nil || o.PromptName != nil {
		return nil, &RequestError{Code: "invalid_request", Message: "a prompt beside the one of the method", Index: -1}
	}
	info, err := c.info(ctx, o.Model)
	if err != nil {
		return nil, err
	}
	o = o.prompted(info.Prompts, names)
	return c.Embed(ctx, inputs, &o)
}

// Ready starts the worker, if that has not been done, and returns when it can embed.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.ready(ctx)
	return err
}

// Info returns what the worker says of itself and of its model, as soon as it is ready.
func (c *Client) Info(ctx context.Context) (Info, error) {
	info, err := c.info(ctx, "")
	if err != nil {
		return Info{}, err
	}
	return *info, nil
}

// info asks about a loaded model; the worker's own is known.
func (c *Client) info(ctx context.Context, model string) (*Info, error) {
	w, err := c.ready(ctx)
	if err != nil || model == "" || model == w.info.Model {
		if err != nil {
			return nil, err
		}
		return w.info, nil
	}
	m, err := c.ask(ctx, controlRequest{Method: "info", Model: model})
	if err != nil {
		return nil, err
	}
	return m.info()
}

// Ping asks whether the worker answers; it does at once, also when it is busy. If it dies before, the next one is asked.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.ask(ctx, controlRequest{Method: "ping"})
	return err
}

// ask puts a question that the worker answers at once. If it dies with it, the next one is asked, as with all that was in
// flight.
func (c *Client) ask(ctx context.Context, question controlRequest) (members, error) {
	if _, hasDeadline := ctx.Deadline(); !hasDeadline {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.options.RequestTimeout)
		defer cancel()
	}
	for {
		w, err := c.ready(ctx)
		if err != nil {
			return nil, err
		}
		told := make(chan members, 1)
		c.mu.Lock()
		w.questions[c.control(w, question)] = told
		c.mu.Unlock()
		select {
		case m := <-told:
			if m.isError() {
				refused, _ := m.refusal(0, 0) // it was read before
				return nil, refused
			}
			return m, nil
		case <-ctx.Done():
			return nil, contextError(ctx)
		case <-w.gone: // the next worker is asked
		}
	}
}

// ready waits for a worker that has answered info.
func (c *Client) ready(ctx context.Context) (*worker, error) {
	for {
		c.mu.Lock()
		err := c.begin()
		w, changed := c.worker, c.changed
		isReady := err == nil && w.accepts()
		c.mu.Unlock()
		if err != nil || isReady {
			return w, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, contextError(ctx)
		}
	}
}

// Stats is a snapshot of a [Client].
type Stats struct {
	PID      int // of the worker; 0 while there is none
	Ready    bool
	Restarts int
	InFlight int // requests
	Queued   int // requests that wait to be sent
}

// Stats tells how the client is doing.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	stats := Stats{Restarts: max(0, c.spawned-1)}
	for _, list := range c.queue.lists() {
		stats.Queued += len(*list)
	}
	if w := c.worker; w != nil {
		stats.PID = w.command.Process.Pid
		stats.Ready = w.accepts()
		stats.InFlight = len(w.pieces)
	}
	return stats
}

// Close is [Client.Shutdown] with a context that does not end. It takes DrainTimeout, twice
// TerminateTimeout, and 10 s for a process that does not die, at most.
func (c *Client) Close() error { return c.Shutdown(context.Background()) }

// Shutdown ends the worker and returns when it is gone and reaped. Calls that wait to be sent fail with [ErrClosed];
// those in flight may still get their vectors: the worker's input is closed, and it has DrainTimeout to finish, then
// TerminateTimeout after SIGTERM, before it is killed; at once when the context ends. The context of the first call
// counts. Shutdown may be called more than once, and at the same time.
func (c *Client) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	if !c.closing {
		c.closing = true
		c.refuseAll(ErrClosed)
		if c.wakeUp != nil {
			c.wakeUp.Stop()
		}
		if c.worker == nil {
			close(c.closed)
		} else {
			go c.climbLadder(ctx, c.worker)
		}
	}
	c.mu.Unlock()
	o := &c.options
	select {
	case <-c.closed:
		return c.closeError
	case <-time.After(o.DrainTimeout + 2*o.TerminateTimeout + 2*immortal):
		return errImmortal
	}
}
