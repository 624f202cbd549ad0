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
	mostTokens    = 512 // a text is truncated at the model's limit, and few models go further
)

// Embeddings are the vectors of one call, one for each text, in order.
type Embeddings struct {
	Vectors     []float32 // Count rows of Dimension numbers
	Count       int
	Dimension   int
	Tokens      []int // of each text, before truncation
	Truncated   []int // the indexes of the texts that were cut
	Model       string
	Fingerprint string // names the vector space: never mix vectors of two
}

// Vector returns the vector of text i; it shares the memory of Vectors.
func (e *Embeddings) Vector(i int) []float32 {
	return e.Vectors[i*e.Dimension : (i+1)*e.Dimension : (i+1)*e.Dimension]
}

// job is one call of Embed. The client's lock guards what changes in it, until done is closed.
type job struct {
	texts       []string
	options     EmbedOptions
	hasDeadline bool // its own, so that its pieces need none
	missing     int  // pieces without an answer

	result *Embeddings
	err    error
	isOver bool
	done   chan struct{}
}

// piece is a range of a job's texts that travels as one request.
type piece struct {
	job           *job
	start, stop   int
	tokens, bytes int // estimated tokens, and bytes, of its texts
	attempts      int
	isSuspect     bool        // a worker died with it: to be sent alone
	timer         *time.Timer // from being sent first, unless the job has a deadline
}

// newJob cuts a call into pieces of bounded cost; a call without texts has one, too.
func newJob(texts []string, options *EmbedOptions) (*job, []*piece, error) {
	j := &job{texts: texts, done: make(chan struct{})}
	if options != nil {
		j.options = *options
	}
	last := &piece{job: j}
	pieces := []*piece{last}
	for i, text := range texts {
		if !utf8.ValidString(text) { // a line would carry another text
			message := fmt.Sprintf("text %d is not UTF-8", i)
			return nil, nil, &RequestError{Code: "invalid_request", Message: message, Index: i}
		}
		if last.stop > last.start && (last.tokens+cost(text) > pieceTokens || last.bytes+len(text) > pieceBytes) {
			last = &piece{job: j, start: i, stop: i}
			pieces = append(pieces, last)
		}
		last.add(text)
	}
	j.missing = len(pieces)
	return j, pieces, nil
}

func (p *piece) add(text string) {
	p.stop++
	p.tokens += cost(text)
	p.bytes += len(text)
}

// cost estimates the tokens of a text: its own and the two special ones.
func cost(text string) int { return 2 + min(len(text)/bytesPerToken, mostTokens) }

// isShort tells whether a piece should not wait behind larger ones.
func (p *piece) isShort() bool { return p.tokens <= shortTokens }

// halves cuts a piece that is too large for this worker. Both keep its history.
func (p *piece) halves() (*piece, *piece) {
	middle := (p.start + p.stop) / 2
	first, second := *p, *p
	first.stop, first.tokens, first.bytes = p.start, 0, 0
	second.start, second.stop, second.tokens, second.bytes = middle, middle, 0, 0
	for _, text := range p.job.texts[p.start:middle] {
		first.add(text)
	}
	for _, text := range p.job.texts[middle:p.stop] {
		second.add(text)
	}
	p.job.missing++
	return &first, &second
}

// take puts the vectors of a piece in their place, and ends the job with the last of them.
func (j *job) take(p *piece, r *response) {
	if j.result == nil {
		j.result = &Embeddings{
			Vectors:     make([]float32, len(j.texts)*r.Dimension),
			Count:       len(j.texts),
			Dimension:   r.Dimension,
			Tokens:      make([]int, len(j.texts)),
			Truncated:   []int{},
			Model:       r.Model,
			Fingerprint: r.Fingerprint,
		}
	}
	copy(j.result.Vectors[p.start*r.Dimension:], r.vectors)
	copy(j.result.Tokens[p.start:], r.Tokens)
	for _, index := range r.Truncated {
		j.result.Truncated = append(j.result.Truncated, p.start+index)
	}
	if j.missing--; j.missing == 0 {
		slices.Sort(j.result.Truncated)
		j.settle(nil)
	}
}

// settle ends a job; the first outcome counts.
func (j *job) settle(err error) {
	if !j.isOver {
		j.isOver, j.err = true, err
		close(j.done)
	}
}
