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

// Embeddings are the vectors of one call, one for each input, in order. One of Vectors, Float16 and Ubinary holds them:
// that which EmbedOptions.Precision asked for.
type Embeddings struct {
	Vectors     []float32 // Count rows of Dimension numbers
	Float16     []uint16  // Count rows of Dimension numbers, each the bits of an IEEE 754 half
	Ubinary     []byte    // Count rows of (Dimension+7)/8 bytes: 1 where a number is above 0, the first number highest
	Count       int
	Dimension   int
	Tokens      []int // of each input, before truncation
	Truncated   []int // the indexes of the inputs that were cut
	Model       string
	Fingerprint string // names the vector space: never mix vectors of two
}

// Vector returns the vector of input i; it shares the memory of Vectors.
func (e *Embeddings) Vector(i int) []float32 { return row(e.Vectors, i, e.Dimension) }

// Float16Vector returns the vector of input i as bits of halves; it shares the memory of Float16.
func (e *Embeddings) Float16Vector(i int) []uint16 { return row(e.Float16, i, e.Dimension) }

// UbinaryVector returns the signs of the vector of input i, packed; it shares the memory of Ubinary.
func (e *Embeddings) UbinaryVector(i int) []byte { return row(e.Ubinary, i, (e.Dimension+7)/8) }

func row[T any](matrix []T, i, length int) []T { return matrix[i*length : (i+1)*length : (i+1)*length] }

// job is one call of Embed or Tokenize. The client's lock guards what changes in it, until done is closed.
type job struct {
	inputs      []string // a copy of the list: the caller may go on before it has been written
	options     EmbedOptions
	tokenize    *TokenizeOptions // nil for Embed; options has what the two share
	hasDeadline bool             // its own, so that its pieces need none
	missing     int              // pieces without an answer
	timers      []*time.Timer    // of its pieces

	result *Embeddings
	tokens *Tokenization
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
func newJob(inputs []string, options EmbedOptions, tokenize *TokenizeOptions) (*job, []*piece, error) {
	j := &job{options: options, tokenize: tokenize, done: make(chan struct{})}
	j.inputs = append([]string{}, inputs...) // not nil: null is not a list
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

func (p *piece) inputs() []string { return p.job.inputs[p.start:p.stop] }

// request is what asks the worker for it.
func (p *piece) request(id int64) any {
	j := p.job
	if j.tokenize != nil {
		return tokenizeRequest{id, "tokenize", p.inputs(), *j.tokenize}
	}
	return embedRequest{id, "embed", p.inputs(), j.options.Precision.format(), j.options}
}

// short tells whether a piece should not wait behind larger ones.
func (p *piece) short() bool { return p.tokens <= shortTokens }

// halves cuts a piece that is too large for this worker. Both keep its history, but one timer runs out for one piece: the
// second half gets its own when it is sent.
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
	second.timer = nil
	p.job.missing++
	return &first, &second
}

// take puts the vectors or the tokens of a piece in their place, and ends the job with the last of them.
func (j *job) take(p *piece, a *answer) {
	var truncated *[]int
	if j.tokenize != nil {
		truncated = j.takeTokens(p, a)
	} else {
		truncated = j.takeVectors(p, a)
	}
	for _, index := range a.truncated {
		*truncated = append(*truncated, p.start+index)
	}
	if j.missing--; j.missing == 0 {
		slices.Sort(*truncated)
		j.settle(nil)
	}
}

// takeVectors returns the list of the inputs that were cut, as takeTokens does.
func (j *job) takeVectors(p *piece, a *answer) *[]int {
	count := len(j.inputs)
	if j.result == nil {
		j.result = &Embeddings{
			Count:       count,
			Dimension:   a.dimension,
			Tokens:      make([]int, count),
			Truncated:   []int{},
			Model:       a.model,
			Fingerprint: a.fingerprint,
		}
	}
	r := j.result
	r.Vectors = put(r.Vectors, a.vectors, p, a.dimension)
	r.Float16 = put(r.Float16, a.float16, p, a.dimension)
	r.Ubinary = put(r.Ubinary, a.ubinary, p, (a.dimension+7)/8)
	copy(r.Tokens[p.start:], a.tokens)
	return &r.Truncated
}

// put copies the rows of a piece into the matrix of its job, which is made of the first; nil stays nil.
func put[T any](matrix, rows []T, p *piece, length int) []T {
	if matrix == nil && rows != nil {
		matrix = make([]T, len(p.job.inputs)*length)
	}
	if rows != nil {
		copy(matrix[p.start*length:], rows)
	}
	return matrix
}

// settle ends a job; the first outcome counts.
func (j *job) settle(err error) {
	if !j.over {
		j.over, j.err = true, err
		for _, timer := range j.timers { // wherever its pieces are: each would hold the call's texts until it runs out
			timer.Stop()
		}
		close(j.done)
	}
}
