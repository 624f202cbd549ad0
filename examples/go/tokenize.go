package embedbridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unicode/utf8"
)

// TokenizeOptions are what a call of Tokenize may ask for.
type TokenizeOptions struct {
	// Model is the name of another model that the worker has loaded.
	Model string `json:"model,omitempty"`
	// PromptName names one of the model's prompts, whose tokens count; it excludes Prompt.
	PromptName *string `json:"prompt_name,omitempty"`
	// Prompt is a literal prefix of every input, whose tokens count.
	Prompt *string `json:"prompt,omitempty"`
	// Truncate false cuts nothing: Truncated is empty, and Offsets go on to the end of each input.
	Truncate *bool `json:"truncate,omitempty"`
	// Offsets asks where in its input each token lies.
	Offsets bool `json:"offsets,omitempty"`
}

// Tokenization is the tokens of one call.
type Tokenization struct {
	Tokens    []int // of each input, as Embed counts them: prompt and special tokens included, before truncation
	Truncated []int // the indexes of the inputs that Embed would cut

	// Offsets has, where they were asked for, a range for each token of each input's own text: where it begins and where
	// it ends, in code points. ByteOffsets makes ranges of bytes of them, which slice a string.
	Offsets [][][2]int

	Model       string
	Fingerprint string // names the vector space, and with it the tokenizer
}

// Tokenize counts the tokens of each input as Embed would, without a vector: so that a text can be cut at the model's
// limit, Info.MaxTokens. options may be nil. It ends as Embed does.
func (c *Client) Tokenize(ctx context.Context, inputs []string, options *TokenizeOptions) (*Tokenization, error) {
	var o TokenizeOptions
	if options != nil {
		o = *options
	}
	j, err := c.carryOut(ctx, inputs, EmbedOptions{Model: o.Model, PromptName: o.PromptName, Prompt: o.Prompt}, &o)
	if err != nil {
		return nil, err
	}
	return j.tokens, nil
}

// ByteOffsets turns ranges of code points of a text, such as Tokenization.Offsets[i] of input i, into ranges of its bytes:
// text[r[0]:r[1]] is what a range covers. What lies beyond the text ends with it.
func ByteOffsets(text string, offsets [][2]int) [][2]int {
	starts := make([]int, 0, len(text)+1) // of each code point; and the end
	for i := range text {
		starts = append(starts, i)
	}
	starts = append(starts, len(text))
	at := func(point int) int { return starts[max(0, min(point, len(starts)-1))] }
	ranges := make([][2]int, len(offsets))
	for i, each := range offsets {
		ranges[i] = [2]int{at(each[0]), at(each[1])}
	}
	return ranges
}

// takeTokens puts the tokens of a piece in their place.
func (j *job) takeTokens(p *piece, a *answer) *[]int {
	if j.tokens == nil {
		j.tokens = &Tokenization{
			Tokens: make([]int, len(j.inputs)), Truncated: []int{}, Model: a.model, Fingerprint: a.fingerprint,
		}
		if j.tokenize.Offsets {
			j.tokens.Offsets = make([][][2]int, len(j.inputs))
		}
	}
	copy(j.tokens.Tokens[p.start:], a.tokens)
	if j.tokenize.Offsets {
		copy(j.tokens.Offsets[p.start:], a.offsets)
	}
	return &j.tokens.Truncated
}

// tokens reads an answer to a tokenize of these inputs.
func (m members) tokens(inputs []string, hasOffsets bool) (*answer, error) {
	var a answer
	var count int
	if err := errors.Join(
		m.read("count", &count), m.read("model", &a.model), m.read("fingerprint", &a.fingerprint), m.counts(len(inputs), &a),
	); err != nil {
		return nil, err
	}
	if count != len(inputs) {
		return nil, fmt.Errorf("an answer about %d inputs to %d", count, len(inputs))
	}
	if !hasOffsets {
		return &a, nil
	}
	var offsets [][][]int // fixed arrays would take too few numbers, and too many
	if err := m.read("offsets", &offsets); err != nil {
		return nil, err
	}
	if bytes.Contains(m["offsets"], []byte("null")) {
		return nil, errors.New("an offset that is null")
	}
	if len(offsets) != len(inputs) {
		return nil, fmt.Errorf("offsets for %d inputs of %d", len(offsets), len(inputs))
	}
	a.offsets = make([][][2]int, len(inputs))
	for i, ranges := range offsets {
		a.offsets[i] = make([][2]int, len(ranges))
		length := utf8.RuneCountInString(inputs[i])
		for k, each := range ranges { // they may overlap, and may be empty
			if len(each) != 2 || each[0] < 0 || each[1] < each[0] || each[1] > length {
				return nil, fmt.Errorf("the range %v in %d characters of input %d", each, length, i)
			}
			a.offsets[i][k] = [2]int(each)
		}
	}
	return &a, nil
}
