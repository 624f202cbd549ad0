package embedbridge

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

func parsed(t *testing.T, right map[string]any, name string, wrong any) members {
	t.Helper()
	told := map[string]any{"id": 1, "status": "ok"}
	for each, value := range right {
		told[each] = value
	}
	told[name] = wrong
	line, err := json.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseLine(line)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTokensAreCountedAndLieInTheirText(t *testing.T) {
	inputs := []string{"a 🎈b", ""}
	offsets := [][][]int{{{0, 1}, {2, 3}, {2, 3}, {3, 4}}, {{0, 0}}}
	right := map[string]any{"model": "m", "fingerprint": "f", "count": 2, "tokens": []int{6, 2}, "truncated": []int{}, "offsets": offsets}
	a, err := parsed(t, right, "x", nil).tokens(inputs, true)
	if err != nil || !slices.Equal(a.tokens, []int{6, 2}) || len(a.offsets[0]) != 4 || len(a.offsets[1]) != 1 {
		t.Fatal(a, err)
	}
	var words []string
	for _, r := range ByteOffsets(inputs[0], a.offsets[0]) {
		words = append(words, inputs[0][r[0]:r[1]])
	}
	if strings.Join(words, "|") != "a|🎈|🎈|b" {
		t.Error(words)
	}
	if beyond := ByteOffsets("é", [][2]int{{-1, 9}}); beyond[0] != [2]int{0, 2} {
		t.Error(beyond)
	}
	type list = []any
	for name, wrongs := range map[string]list{
		"count":       {1, nil, "2"},
		"model":       {nil, 7},
		"fingerprint": {nil, 7},
		"tokens":      {list{6}, list{6, nil}, list{6, -1}},
		"truncated":   {nil, list{2}},
		"offsets": {
			nil, list{list{}}, list{list{}, nil}, list{list{}, list{list{0, 1}}}, list{list{list{0, 5}}, list{}},
			list{list{list{-1, 1}}, list{}}, list{list{list{1, 0}}, list{}}, list{list{list{0.5, 1}}, list{}},
			list{list{list{"0", 1}}, list{}}, list{list{list{0, nil}}, list{}}, list{list{list{0}}, list{}},
			list{list{list{0, 1, 2}}, list{}},
		},
	} {
		for _, wrong := range wrongs {
			if _, err := parsed(t, right, name, wrong).tokens(inputs, true); err == nil {
				t.Errorf("%s %v was accepted", name, wrong)
			}
		}
	}
}

func TestHalvesAndSignsHaveLengthsOfTheirOwn(t *testing.T) {
	right := map[string]any{"model": "m", "fingerprint": "f", "count": 2, "dimension": 9, "tokens": []int{3, 3}, "truncated": []int{}}
	encoded := func(raw string) string { return base64.StdEncoding.EncodeToString([]byte(raw)) }
	halves, signs := encoded(strings.Repeat("\x00\x3c", 18)), encoded("\x80\x80\x7f\x80")
	a, err := parsed(t, right, "embeddings_base64", halves).vectors(2, 9, Float16)
	isOther := func(bits uint16) bool { return bits != 0x3c00 }
	if err != nil || len(a.float16) != 18 || slices.ContainsFunc(a.float16, isOther) || a.vectors != nil {
		t.Error(a, err)
	}
	a, err = parsed(t, right, "embeddings_base64", signs).vectors(2, 9, Ubinary)
	if err != nil || string(a.ubinary) != "\x80\x80\x7f\x80" {
		t.Error(a, err)
	}
	for _, wrong := range []struct {
		precision Precision
		encoded   string
	}{
		{Float16, signs}, {Ubinary, halves}, {Ubinary, encoded("\x80\x80\x7f")}, {Ubinary, encoded("\x80\x80\x7f\x80\x80")},
		{Float16, encoded(strings.Repeat("\x00\x7c", 18))}, {Float16, encoded(strings.Repeat("\x01\xfe", 18))},
	} {
		if _, err := parsed(t, right, "embeddings_base64", wrong.encoded).vectors(2, 9, wrong.precision); err == nil {
			t.Errorf("%v was accepted", wrong)
		}
	}
}

func TestALargeTokenizeIsCutAndJoinedInOrderAndSurvivesADeath(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, once(t, "--kill-after=2", "--max-inputs=700")...)
	inputs := make([]string, 5000)
	for i := range inputs {
		inputs[i] = strings.Repeat("é ", i%7)
	}
	inputs[3] = strings.Repeat("word ", 600)
	inputs[4000] = inputs[3]
	for _, hasOffsets := range []bool{true, false} {
		found, err := client.Tokenize(within(t), inputs, &TokenizeOptions{Offsets: hasOffsets})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(found.Truncated, []int{3, 4000}) || found.Tokens[3] != 602 || found.Model != "fake-model" {
			t.Errorf("%v %v %v", found.Truncated, found.Tokens[:5], found.Model)
		}
		if (found.Offsets != nil) != hasOffsets {
			t.Errorf("%d offsets", len(found.Offsets))
		}
		for i := range inputs {
			if i != 3 && i != 4000 && (found.Tokens[i] != 2+i%7 || hasOffsets && len(found.Offsets[i]) != i%7) {
				t.Fatalf("input %d has %d tokens", i, found.Tokens[i])
			}
		}
	}
	if client.Stats().Restarts != 1 {
		t.Errorf("%+v", client.Stats())
	}
}

func TestVectorsComeAtThePrecisionThatIsAskedFor(t *testing.T) {
	t.Parallel()
	client := start(t, Options{}, "--max-inputs=30", "--dimension=16")
	eleven := 11
	exact, err := client.Embed(within(t), texts(100), &EmbedOptions{Dimensions: &eleven})
	halves, halvesErr := client.Embed(within(t), texts(100), &EmbedOptions{Dimensions: &eleven, Precision: Float16})
	signs, signsErr := client.EmbedQuery(within(t), texts(100), &EmbedOptions{Dimensions: &eleven, Precision: Ubinary})
	if err := errors.Join(err, halvesErr, signsErr); err != nil {
		t.Fatal(err)
	}
	if halves.Vectors != nil || signs.Vectors != nil || signs.Dimension != 11 || len(signs.UbinaryVector(99)) != 2 {
		t.Error("other rows than those that were asked for")
	}
	for row := range 100 {
		for column, number := range exact.Vector(row) {
			bit := signs.UbinaryVector(row)[column/8]>>(7-column%8)&1 == 1
			half := float32FromHalf(halves.Float16Vector(row)[column])
			if bit != (number > 0) || math.Abs(float64(half-number)) > 1e-3 {
				t.Fatalf("row %d: %v is %v and %v", row, number, half, bit)
			}
		}
	}
}

// float32FromHalf reads a normal number.
func float32FromHalf(bits uint16) float32 {
	sign, exponent, fraction := uint32(bits>>15), uint32(bits>>10&31), uint32(bits&1023)
	return math.Float32frombits(sign<<31 | (exponent+127-15)<<23 | fraction<<13)
}
