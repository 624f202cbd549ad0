package embedbridge

import (
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

const (
	// A piece is a second or two of work on a small machine: long enough to be batched well, short enough that a bulk
	// call neither outlives the time limit of its pieces in the worker's queue nor keeps others waiting.
	pieceTokens = 16384
	pieceBytes  = 4 << 20 // times six, for the escapes of control characters, still a legal line
	shortTokens = 512     // about one micro-batch of the worker

	bytesPerToken = 4
	specialTokens = 2
	mostTokens    = 512 // an input is truncated at the model's limit, and few models go further
)

// Embeddings are the vectors of one call, one for each input, in order.
type Embeddings struct {
	Vectors     []float32 // Count rows of Dimension numbers
	Count       int
	Dimension   int
	Tokens      []int // of each input, before truncation
	Truncated   []int // the indexes of the inputs that were cut
	Model       string
	Fingerprint string // names the vector space: never mix vectors of two
}

// Vector returns the vector of input i; it shares the memory of Vectors.
func (e *Embeddings) Vector(i int) []float32 {
	return e.Vectors[i*e.Dimension : (i+1)*e.Dimension : (i+1)*e.Dimension]
}

// job is one call of Embed. The client's lock guards what changes in it, until done is closed.
type job struct {
	inputs      []string // a copy of the list: the caller may go on before it has been written
	options     EmbedOptions
	hasDeadline bool // its own, so that its pieces need none
	missing     int  // pieces without an answer

	result *Embeddings
	err    error
	over   bool
	done   chan struct{}
}

// piece is a range of a job's inputs that travels as one request.
type piece struct {
	job           *job
	start, stop   int
	tokens, bytes int // estimated tokens, and bytes, of its inputs
	attempts      int
	suspect       bool        // a worker died with it: to be sent alone
	timer         *time.Timer // from being sent first, unless the job has a deadline
}

// newJob cuts a call into pieces of bounded cost; a call without inputs has one, too.
func newJob(inputs []string, options *EmbedOptions) (*job, []*piece, error) {
	j := &job{inputs: append([]string{}, inputs...), done: make(chan struct{})} // not nil: null is not a list
	if options != nil {
		j.options = *options
	}
	if err := j.options.check(); err != nil {
		return nil, nil, err
	}
	last := &piece{job: j}
	pieces := []*piece{last}
	for i, input := range j.inputs {
		if !utf8.ValidString(input) { // a line would carry another text
			message := fmt.Sprintf("input %d is not UTF-8", i)
			return nil, nil, &RequestError{Code: "invalid_request", Message: message, Index: i}
		}
		if last.stop > last.start && (last.tokens+cost(input) > pieceTokens || last.bytes+len(input) > pieceBytes) {
			last = &piece{job: j, start: i, stop: i}
			pieces = append(pieces, last)
		}
		last.add(input)
	}
	j.missing = len(pieces)
	return j, pieces, nil
}

func (p *piece) add(input string) {
	p.stop++
	p.tokens += cost(input)
	p.bytes += len(input)
}

// cost estimates the tokens of an input: its own and the special ones.
func cost(input string) int { return specialTokens + min(len(input)/bytesPerToken, mostTokens) }

func (p *piece) count() int { return p.stop - p.start }

// short tells whether a piece should not wait behind larger ones.
func (p *piece) short() bool { return p.tokens <= shortTokens }

// halves cuts a piece that is too large for this worker. Both keep its history.
func (p *piece) halves() (*piece, *piece) {
	middle := (p.start + p.stop) / 2
	first, second := *p, *p
	first.stop, first.tokens, first.bytes = p.start, 0, 0
	second.start, second.stop, second.tokens, second.bytes = middle, middle, 0, 0
	for _, input := range p.job.inputs[p.start:middle] {
		first.add(input)
	}
	for _, input := range p.job.inputs[middle:p.stop] {
		second.add(input)
	}
	p.job.missing++
	return &first, &second
}

func (p *piece) stopTimer() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// take puts the vectors of a piece in their place, and ends the job with the last of them.
func (j *job) take(p *piece, a *answer) {
	if j.result == nil {
		j.result = &Embeddings{
			Vectors:     make([]float32, len(j.inputs)*a.dimension),
			Count:       len(j.inputs),
			Dimension:   a.dimension,
			Tokens:      make([]int, len(j.inputs)),
			Truncated:   []int{},
			Model:       a.model,
			Fingerprint: a.fingerprint,
		}
	}
	copy(j.result.Vectors[p.start*a.dimension:], a.vectors)
	copy(j.result.Tokens[p.start:], a.tokens)
	for _, index := range a.truncated {
		j.result.Truncated = append(j.result.Truncated, p.start+index)
	}
	if j.missing--; j.missing == 0 {
		slices.Sort(j.result.Truncated)
		j.settle(nil)
	}
}

// settle ends a job; the first outcome counts.
func (j *job) settle(err error) {
	if !j.over {
		j.over, j.err = true, err
		close(j.done)
	}
}
