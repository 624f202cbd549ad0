package embedbridge

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
)

// The wire: one JSON object a line. docs/protocol.md is the whole of it.

const protocolVersion = 1

// Info is what a worker says of itself once its model has run.
type Info struct {
	Protocol    int    `json:"protocol"`
	Version     string `json:"version"`
	PID         int    `json:"pid"`
	Model       string `json:"model"`
	Fingerprint string `json:"fingerprint"` // names the vector space: never mix vectors of two
	Dimension   int    `json:"dimension"`
	MaxTokens   int    `json:"max_tokens"`
	Limits      Limits `json:"limits"`
}

// Limits are what the worker accepts; the client keeps within them.
type Limits struct {
	MaxLineBytes     int `json:"max_line_bytes"`
	MaxInputs        int `json:"max_inputs"`
	MaxTextBytes     int `json:"max_text_bytes"`
	MaxInFlight      int `json:"max_in_flight"`
	MaxInFlightBytes int `json:"max_in_flight_bytes"`
}

func (l Limits) withDefaults() Limits {
	for _, each := range []struct {
		value     *int
		byDefault int
	}{
		{&l.MaxLineBytes, 32 << 20}, {&l.MaxInputs, 16384}, {&l.MaxTextBytes, 1 << 20},
		{&l.MaxInFlight, 1024}, {&l.MaxInFlightBytes, 64 << 20},
	} {
		if *each.value <= 0 {
			*each.value = each.byDefault
		}
	}
	return l
}

type embedRequest struct {
	ID             int64    `json:"id"`
	Method         string   `json:"method"`
	Inputs         []string `json:"inputs"`
	EncodingFormat string   `json:"encoding_format"`
	EmbedOptions
}

type controlRequest struct {
	ID     int64  `json:"id"`
	Method string `json:"method"`
	Target int64  `json:"target,omitempty"` // ids begin at 1
}

// encodeLine returns a request with its newline.
func encodeLine(request any) []byte {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false) // six bytes for each "<" of a web page
	if err := encoder.Encode(request); err != nil {
		panic(err) // numbers and valid strings only
	}
	return line.Bytes()
}

// response is one line of the worker, whatever it answers. An embedded Info reads its members.
type response struct {
	Info
	RawID        json.RawMessage `json:"id"`
	Status       string          `json:"status"`
	Code         string          `json:"code"`
	Message      string          `json:"message"`
	Retryable    bool            `json:"retryable"`
	Index        *int            `json:"index"`
	Count        int             `json:"count"`
	Matrix       []byte          `json:"embeddings_base64"`
	Tokens       []int           `json:"tokens"`
	Truncated    []int           `json:"truncated"`
	MicroBatches int64           `json:"micro_batches"`

	id      int64 // 0 for what is not an id of ours
	vectors []float32
}

// decodeLine reads one line and the vectors in it. An error means that the line is not an answer of this protocol.
func decodeLine(line []byte) (*response, error) {
	var r response
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("a line that is no answer: %w", err)
	}
	if r.Status != "ok" && r.Status != "error" {
		return nil, fmt.Errorf("a line without a status")
	}
	r.id, _ = strconv.ParseInt(string(r.RawID), 10, 64)
	if len(r.Matrix)%4 != 0 {
		return nil, fmt.Errorf("a matrix of %d bytes", len(r.Matrix))
	}
	r.vectors = make([]float32, len(r.Matrix)/4)
	for i := range r.vectors {
		bits := binary.LittleEndian.Uint32(r.Matrix[4*i:])
		if bits&0x7f800000 == 0x7f800000 {
			return nil, fmt.Errorf("a vector that is not finite")
		}
		r.vectors[i] = math.Float32frombits(bits)
	}
	r.Matrix = nil
	return &r, nil
}

// check tells what is wrong with an answer to count texts; dimension is 0 where any will do.
func (r *response) check(count, dimension int) error {
	switch {
	case r.Count != count:
		return fmt.Errorf("an answer of %d vectors to %d texts", r.Count, count)
	case r.Dimension < 1 || (dimension != 0 && r.Dimension != dimension):
		return fmt.Errorf("vectors of dimension %d instead of %d", r.Dimension, dimension)
	case len(r.vectors) != count*r.Dimension:
		return fmt.Errorf("%d bytes of vectors instead of %d x %d x 4", 4*len(r.vectors), count, r.Dimension)
	case len(r.Tokens) != count:
		return fmt.Errorf("%d token counts for %d texts", len(r.Tokens), count)
	}
	for _, index := range r.Truncated {
		if index < 0 || index >= count {
			return fmt.Errorf("text %d of %d was truncated", index, count)
		}
	}
	return nil
}
