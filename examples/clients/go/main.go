// Run a batch, cancel it when something is done, keep both files: the official Go client.
//
//	go run . requests.jsonl
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/openai/openai-go/v3"
)

func main() {
	client := openai.NewClient() // OPENAI_BASE_URL and OPENAI_API_KEY

	requests, err := os.Open(os.Args[1])
	check(err)
	file, err := client.Files.New(context.TODO(), openai.FileNewParams{
		File:    requests,
		Purpose: openai.FilePurposeBatch,
	})
	check(err)
	batch, err := client.Batches.New(context.TODO(), openai.BatchNewParams{
		InputFileID:      file.ID,
		Endpoint:         openai.BatchNewParamsEndpointV1ChatCompletions,
		CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
	})
	check(err)
	fmt.Println("created", batch.ID)

	for batch.Status == openai.BatchStatusValidating ||
		(batch.Status == openai.BatchStatusInProgress && batch.RequestCounts.Completed == 0) {
		time.Sleep(500 * time.Millisecond)
		batch, err = client.Batches.Get(context.TODO(), batch.ID)
		check(err)
	}

	if batch.Status == openai.BatchStatusInProgress {
		batch, err = client.Batches.Cancel(context.TODO(), batch.ID)
		check(err)
	}
	for batch.Status == openai.BatchStatusFinalizing || batch.Status == openai.BatchStatusCancelling {
		time.Sleep(500 * time.Millisecond)
		batch, err = client.Batches.Get(context.TODO(), batch.ID)
		check(err)
	}

	counts := batch.RequestCounts
	fmt.Printf("%s: %d of %d completed, %d failed\n", batch.Status, counts.Completed, counts.Total, counts.Failed)
	keep(client, batch.OutputFileID, "output.jsonl")
	keep(client, batch.ErrorFileID, "error.jsonl")
}

// keep downloads a file, if there is one.
func keep(client openai.Client, fileID string, name string) {
	if fileID == "" {
		return
	}
	answer, err := client.Files.Content(context.TODO(), fileID)
	check(err)
	defer answer.Body.Close()
	file, err := os.Create(name)
	check(err)
	_, err = io.Copy(file, answer.Body)
	check(err)
	check(file.Close())
}

func check(err error) {
	if err != nil {
		panic(err.Error())
	}
}
