package embedbridge

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// The wire: one JSON object a line. docs/protocol.md is the whole of it.

const (
	protocolVersion = 1
	maxDimension    = 1 << 16 // no model is near it, and nothing is allocated for more
)

// Info is what a worker says of itself and of its model once that has run.
type Info struct {
	Protocol          int
	Version           string
	PID               int
	Model             string
	Fingerprint       string // names the vector space: never mix vectors of two
	Dimension         int
	MaxTokens         int
	Prompts           map[string]string // by the names that EmbedOptions.PromptName takes
	DefaultPromptName string            // the one that is used when none is asked for; empty: none
	Limits            Limits
}

// Limits are what the worker accepts; the client keeps within them.
type Limits struct {
	MaxLineBytes     int
	MaxInputs        int
	MaxTextBytes     int
	MaxInFlight      int
	MaxInFlightBytes int
}

var defaultLimits = Limits{
	MaxLineBytes:     32 << 20,
	MaxInputs:        16384,
	MaxTextBytes:     1 << 20,
	MaxInFlight:      1024,
	MaxInFlightBytes: 64 << 20,
}

type embedRequest struct {
	ID             int64    `json:"id"`
	Method         string   `json:"method"`
	Inputs         []string `json:"inputs"`
	EncodingFormat string   `json:"encoding_format"`
	EmbedOptions
}

type tokenizeRequest struct {
	ID     int64    `json:"id"`
	Method string   `json:"method"`
	Inputs []string `json:"inputs"`
	TokenizeOptions
}

type controlRequest struct {
	ID     int64  `json:"id"`
	Method string `json:"method"`
	Model  string `json:"model,omitempty"`
	Target int64  `json:"target,omitempty"` // ids begin at 1
}

// encodeLine appends a request and its newline to a buffer.
func encodeLine(line *bytes.Buffer, request any) {
	encoder := json.NewEncoder(line)
	encoder.SetEscapeHTML(false) // six bytes for each "<" of a web page
	if err := encoder.Encode(request); err != nil {
		panic(err) // numbers and valid strings only
	}
}

// members are those of one line of the worker, not read yet: which of them count depends on what they answer, and the
// others may be of a later version of the protocol.
type members map[string]json.RawMessage

// parseLine reads one line. An error means that it is not an answer of this protocol.
func parseLine(line []byte) (members, error) {
	if !utf8.Valid(line) {
		return nil, errors.New("a line that is not UTF-8")
	}
	var m members
	if err := json.Unmarshal(line, &m); err != nil {
		return nil, fmt.Errorf("a line that is no answer: %w", err)
	}
	if status := m.text("status"); status != "ok" && status != "error" {
		return nil, errors.New("a line without a status")
	}
	return m, nil
}

// id is 0 for what is not an id of ours.
func (m members) id() int64 {
	id, _ := strconv.ParseInt(string(m["id"]), 10, 64)
	return id
}

func (m members) isError() bool { return m.text("status") == "error" }

// read decodes a member of that type; null and absent are an error, as is any other type.
func (m members) read(name string, into any) error {
	raw := m[name]
	if raw == nil || string(raw) == "null" {
		return fmt.Errorf("no %s", name)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// text is empty for what is not a string.
func (m members) text(name string) (text string) {
	_ = m.read(name, &text)
	return text
}

// number is 0 for what is not an integer.
func (m members) number(name string) (number int) {
	if m.read(name, &number) != nil {
		return 0
	}
	return number
}

// refusal reads an error that answers a request of count inputs, of which the first is input start of its call.
func (m members) refusal(start, count int) (*RequestError, error) {
	refused := &RequestError{Index: -1}
	err := errors.Join(m.read("code", &refused.Code), m.read("message", &refused.Message))
	if m["retryable"] != nil {
		err = errors.Join(err, m.read("retryable", &refused.Retryable))
	}
	if index := m["index"]; index != nil && string(index) != "null" {
		var of int
		if err = errors.Join(err, m.read("index", &of)); err == nil && (of < 0 || of >= max(1, count)) {
			err = fmt.Errorf("an error at input %d of %d", of, count)
		}
		refused.Index = start + of
	}
	return refused, err
}

// info reads an answer to info.
func (m members) info() (*Info, error) {
	i := &Info{
		Version:           m.text("version"),
		PID:               m.number("pid"),
		MaxTokens:         m.number("max_tokens"),
		DefaultPromptName: m.text("default_prompt_name"),
		Limits:            m.limits(),
	}
	if m.read("prompts", &i.Prompts) != nil {
		i.Prompts = nil
	}
	if err := m.read("protocol", &i.Protocol); err != nil || i.Protocol != protocolVersion {
		return nil, fmt.Errorf("it speaks protocol %.40s, not %d", m["protocol"], protocolVersion)
	}
	err := errors.Join(m.read("model", &i.Model), m.read("fingerprint", &i.Fingerprint), m.read("dimension", &i.Dimension))
	if err != nil || i.Model == "" || i.Fingerprint == "" || i.Dimension < 1 || i.Dimension > maxDimension {
		return nil, errors.New("its info names no model, fingerprint or dimension")
	}
	return i, nil
}

// limits are the defaults where the worker tells none.
func (m members) limits() Limits {
	var told members
	_ = m.read("limits", &told)
	limits := defaultLimits
	for name, into := range map[string]*int{
		"max_line_bytes":      &limits.MaxLineBytes,
		"max_inputs":          &limits.MaxInputs,
		"max_text_bytes":      &limits.MaxTextBytes,
		"max_in_flight":       &limits.MaxInFlight,
		"max_in_flight_bytes": &limits.MaxInFlightBytes,
	} {
		if number := told.number(name); number > 0 {
			*into = number
		}
	}
	return limits
}

// answer is a checked answer to an embed, with one of the three kinds of vectors, or to a tokenize.
type answer struct {
	model, fingerprint string
	dimension          int
	vectors            []float32 // of count rows, as the next two
	float16            []uint16
	ubinary            []byte
	tokens, truncated  []int
	offsets            [][][2]int
}

// answerTo reads an answer to a piece; dimension is 0 where any will do. An error means that nothing of it may be used.
func (m members) answerTo(p *piece, dimension int) (*answer, error) {
	if p.job.tokenize != nil {
		return m.tokens(p.inputs(), p.job.tokenize.Offsets)
	}
	return m.vectors(p.count(), dimension, p.job.options.Precision)
}

// vectors reads an answer to an embed of count inputs.
func (m members) vectors(count, dimension int, precision Precision) (*answer, error) {
	var a answer
	var told int
	if err := errors.Join(
		m.read("count", &told), m.read("dimension", &a.dimension), m.read("model", &a.model),
		m.read("fingerprint", &a.fingerprint), m.counts(count, &a),
	); err != nil {
		return nil, err
	}
	switch {
	case told != count:
		return nil, fmt.Errorf("an answer of %d vectors to %d inputs", told, count)
	case a.dimension < 1 || a.dimension > maxDimension || dimension != 0 && a.dimension != dimension:
		return nil, fmt.Errorf("vectors of dimension %d instead of %d", a.dimension, dimension)
	}
	var err error
	switch numbers := uint64(count) * uint64(a.dimension); precision {
	case Float16:
		a.float16, err = float16s(m.matrix(2 * numbers))
	case Ubinary:
		a.ubinary, err = m.matrix(uint64(count) * uint64((a.dimension+7)/8))
	default:
		a.vectors, err = float32s(m.matrix(4 * numbers))
	}
	return &a, err
}

// counts reads the tokens of each input, and which were cut.
func (m members) counts(count int, a *answer) error {
	err := errors.Join(m.read("tokens", &a.tokens), m.read("truncated", &a.truncated))
	switch {
	case err != nil:
		return err
	case bytes.Contains(m["tokens"], []byte("null")) || bytes.Contains(m["truncated"], []byte("null")):
		return errors.New("a number that is null") // which would be read as 0
	case len(a.tokens) != count:
		return fmt.Errorf("%d token counts for %d inputs", len(a.tokens), count)
	}
	for _, tokens := range a.tokens {
		if tokens < 0 {
			return fmt.Errorf("an input of %d tokens", tokens)
		}
	}
	for _, index := range a.truncated {
		if index < 0 || index >= count {
			return fmt.Errorf("input %d of %d was truncated", index, count)
		}
	}
	return nil
}

// matrix decodes the bytes of all vectors, whose number was checked to be one of this world.
func (m members) matrix(want uint64) ([]byte, error) {
	encoded := []byte(m["embeddings_base64"])
	if len(encoded) < 2 || encoded[0] != '"' {
		return nil, errors.New("no embeddings_base64")
	}
	if encoded = encoded[1 : len(encoded)-1]; bytes.IndexByte(encoded, '\\') >= 0 { // JSON may escape what it likes
		encoded = []byte(m.text("embeddings_base64"))
	}
	if bytes.ContainsAny(encoded, "\r\n") || uint64(base64.StdEncoding.DecodedLen(len(encoded))) < want {
		return nil, fmt.Errorf("%d characters of vectors for %d bytes", len(encoded), want)
	}
	matrix := make([]byte, base64.StdEncoding.DecodedLen(len(encoded)))
	length, err := base64.StdEncoding.Decode(matrix, encoded)
	if err != nil {
		return nil, fmt.Errorf("embeddings_base64: %w", err)
	}
	if uint64(length) != want {
		return nil, fmt.Errorf("%d bytes of vectors instead of %d", length, want)
	}
	return matrix[:length], nil
}

var errNotFinite = errors.New("a vector that is not finite")

func float32s(matrix []byte, err error) ([]float32, error) {
	vectors := make([]float32, len(matrix)/4)
	for i := range vectors {
		bits := binary.LittleEndian.Uint32(matrix[4*i:])
		if bits&0x7f800000 == 0x7f800000 {
			return nil, errNotFinite
		}
		vectors[i] = math.Float32frombits(bits)
	}
	return vectors, err
}

func float16s(matrix []byte, err error) ([]uint16, error) {
	vectors := make([]uint16, len(matrix)/2)
	for i := range vectors {
		vectors[i] = binary.LittleEndian.Uint16(matrix[2*i:])
		if vectors[i]&0x7c00 == 0x7c00 {
			return nil, errNotFinite
		}
	}
	return vectors, err
}
