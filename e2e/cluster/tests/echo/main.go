// Command echo runs in the test pods of the local cluster. It answers with the pod's name, the addresses of a
// host name, or the content of a URL.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		log.Printf("asked by %s", request.RemoteAddr)
		name, _ := os.Hostname()
		fmt.Fprintln(response, name)
	})
	http.HandleFunc("/resolve", func(response http.ResponseWriter, request *http.Request) {
		addresses, err := net.LookupHost(request.FormValue("name"))
		if err != nil {
			http.Error(response, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(response, addresses)
	})
	http.HandleFunc("/fetch", func(response http.ResponseWriter, request *http.Request) {
		answer, err := http.Get(request.FormValue("url"))
		if err != nil {
			http.Error(response, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		io.Copy(response, answer.Body)
	})
	log.Print("listening")
	log.Fatal(http.ListenAndServe(":8080", nil))
}
