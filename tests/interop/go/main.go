// The whole job with the official Go client; see whole_job.py beside this folder.
//
//	whole-job INPUT.jsonl CANCEL_AT FAILED_BATCH_ID
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/openai/openai-go/v3"
)

const poll = 50 * time.Millisecond

func main() {
	path, failedBatchID := os.Args[1], os.Args[3]
	cancelAt, err := strconv.ParseInt(os.Args[2], 10, 64)
	check(err)
	client := openai.NewClient() // OPENAI_BASE_URL and OPENAI_API_KEY

	content, err := os.Open(path)
	check(err)
	file, err := client.Files.New(context.TODO(), openai.FileNewParams{
		File:    content,
		Purpose: openai.FilePurposeBatch,
	})
	check(err)
	tell("uploaded", seen{"filename": file.Filename, "bytes": file.Bytes, "purpose": file.Purpose})
	file, err = client.Files.Get(context.TODO(), file.ID) // this client has no helper that waits
	check(err)
	tell("processed", seen{"id": file.ID, "status": file.Status})

	batch, err := client.Batches.New(context.TODO(), openai.BatchNewParams{
		InputFileID:      file.ID,
		Endpoint:         openai.BatchNewParamsEndpointV1ChatCompletions,
		CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
	})
	check(err)
	tell("created", seen{"id": batch.ID, "status": batch.Status, "endpoint": batch.Endpoint})
	ids := []string{}
	pages := client.Batches.ListAutoPaging(context.TODO(), openai.BatchListParams{Limit: openai.Int(100)})
	for pages.Next() {
		ids = append(ids, pages.Current().ID)
	}
	check(pages.Err())
	tell("listed", seen{"ids": ids})

	for batch.RequestCounts.Completed < cancelAt {
		time.Sleep(poll)
		batch, err = client.Batches.Get(context.TODO(), batch.ID)
		check(err)
	}
	tell("running", seen{"status": batch.Status, "model": batch.Model, "total": batch.RequestCounts.Total})
	batch, err = client.Batches.Cancel(context.TODO(), batch.ID)
	check(err)
	tell("cancelling", seen{"id": batch.ID, "status": batch.Status})
	for batch.Status == openai.BatchStatusCancelling {
		time.Sleep(poll)
		batch, err = client.Batches.Get(context.TODO(), batch.ID)
		check(err)
	}
	tell("ended", seen{"status": batch.Status})

	download(client, batch.OutputFileID, "output.jsonl")
	download(client, batch.ErrorFileID, "error.jsonl")

	_, err = client.Batches.Cancel(context.TODO(), failedBatchID)
	var refusal *openai.Error
	if errors.As(err, &refusal) {
		tell("refused", seen{
			"status": refusal.StatusCode, "code": null(refusal.Code), "type": refusal.Type, "message": refusal.Message,
		})
	}
}

type seen map[string]any

func tell(step string, what seen) {
	what["step"] = step
	line, err := json.Marshal(what)
	check(err)
	fmt.Println(string(line))
}

// null is what JSON had where this client shows an empty string.
func null(text string) any {
	if text == "" {
		return nil
	}
	return text
}

func download(client openai.Client, fileID string, name string) {
	answer, err := client.Files.Content(context.TODO(), fileID)
	check(err)
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	check(err)
	check(os.WriteFile(name, content, 0o644))
}

func check(err error) {
	if err != nil {
		panic(err.Error())
	}
}
