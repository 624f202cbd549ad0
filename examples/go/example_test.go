package embedbridge_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"embedbridge"
)

func Example() {
	client, err := embedbridge.New(embedbridge.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	embeddings, err := client.Embed(ctx, []string{"hello", "world"}, nil)
	var refused *embedbridge.RequestError
	switch {
	case errors.As(err, &refused):
		log.Fatalf("input %d: %s", refused.Index, refused.Code)
	case errors.Is(err, embedbridge.ErrTimeout):
		log.Fatal("later, perhaps")
	case err != nil:
		log.Fatal(err)
	}
	for i := range embeddings.Count {
		fmt.Println(embeddings.Vector(i)[:3])
	}
}
