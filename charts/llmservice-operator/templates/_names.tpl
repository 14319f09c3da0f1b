{{/*
Every object name and image reference of the chart.

  llmservice-operator.fullname            name of the operator's objects
  llmservice-operator.clusterWideName     name of the admission policy
  llmservice-operator.serviceAccountName  account the operator runs as
  llmservice-operator.leaseRoleName       Role for the leader Lease
  llmservice-operator.remoteCodeRoleName  Role that grants trust-remote-code
  llmservice-operator.metricsServerName   name of the metrics server's objects
  llmservice-operator.metricsServerPodsName  Service object with the addresses of the metrics server's pods
  llmservice-operator.servesMetricsApi    whether the release serves external.metrics.k8s.io
  llmservice-operator.namespace           namespace of the release's objects
  llmservice-operator.registry            registry of the images of this release
  llmservice-operator.image               image reference of the operator
  llmservice-operator.mirrored            an image reference with the registry of global.imageRegistry
  llmservice-operator.imageOrReleased     such a reference, or that of an image of this release
*/}}

{{/* "true" if the metrics server serves external.metrics.k8s.io, and empty if not. */}}
{{- define "llmservice-operator.servesMetricsApi" -}}
{{- if and .Values.metricsServer.enabled .Values.metricsAPI.enabled (not .Values.watchNamespaces) }}true{{ end -}}
{{- end -}}

{{- define "llmservice-operator.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* At most 54 characters, so that the longest suffix below still gives a DNS label. */}}
{{- define "llmservice-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 54 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 54 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 54 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Releases of one name in several namespaces may share a cluster. A namespace has no dot. */}}
{{- define "llmservice-operator.clusterWideName" -}}
{{- include "llmservice-operator.fullname" . }}.{{ include "llmservice-operator.namespace" . }}
{{- end -}}

{{- define "llmservice-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "llmservice-operator.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name must be set when serviceAccount.create is false: name the account that the operator shall run as" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "llmservice-operator.leaseRoleName" -}}
{{- include "llmservice-operator.fullname" . }}-lease
{{- end -}}

{{- define "llmservice-operator.remoteCodeRoleName" -}}
{{- include "llmservice-operator.fullname" . }}-trust-remote-code
{{- end -}}

{{/* Shortened once more, so that with its suffix it is still a DNS label. */}}
{{- define "llmservice-operator.metricsServerName" -}}
{{- include "llmservice-operator.fullname" . | trunc 48 | trimSuffix "-" }}-metrics-server
{{- end -}}

{{- define "llmservice-operator.metricsServerPodsName" -}}
{{- include "llmservice-operator.fullname" . | trunc 43 | trimSuffix "-" }}-metrics-server-pods
{{- end -}}

{{/* No default: whoever owned a name that the project does not own would run code with the operator's rights. */}}
{{- define "llmservice-operator.registry" -}}
{{- $missing := "image.registry is empty, and the project does not publish images yet: build and push the images (docs/quickstart.md), and add --set image.registry=REGISTRY, such as registry.example.com" -}}
{{- .Values.global.imageRegistry | default .Values.image.registry | required $missing -}}
{{- end -}}

{{/* The ServiceAccount whose token KEDA sends; without a namespace, that of each service. Empty without a token. */}}
{{- define "llmservice-operator.kedaReader" -}}
{{- $sent := .Values.keda.authentication -}}
{{- if and .Values.keda.enabled $sent.name -}}
{{- $account := required "keda.authentication.serviceAccount must be set when keda.authentication.name is set: name the ServiceAccount whose token KEDA sends" $sent.serviceAccount -}}
{{- if eq $sent.kind "ClusterTriggerAuthentication" }}{{ .Values.keda.namespace }}/{{ end }}{{ $account -}}
{{- end -}}
{{- end -}}

{{/* A digest names the exact bytes, so it wins over the tag. */}}
{{- define "llmservice-operator.image" -}}
{{- $repository := printf "%s/%s" (include "llmservice-operator.registry" .) .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/*
Arguments: the chart's context and a reference. As for every container runtime, the part before the first slash is a
registry if it contains a dot or a colon, or is localhost.
*/}}
{{- define "llmservice-operator.mirrored" -}}
{{- $registry := (index . 0).Values.global.imageRegistry -}}
{{- $reference := index . 1 -}}
{{- if and $registry $reference -}}
{{- printf "%s/%s" $registry (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $reference "") -}}
{{- else -}}
{{- $reference -}}
{{- end -}}
{{- end -}}

{{/* Arguments: the chart's context, a reference, and the name of the image of this release if the reference is empty. */}}
{{- define "llmservice-operator.imageOrReleased" -}}
{{- $root := index . 0 -}}
{{- if index . 1 -}}
{{- include "llmservice-operator.mirrored" . -}}
{{- else -}}
{{- printf "%s/llmservice/%s:%s" (include "llmservice-operator.registry" $root) (index . 2) $root.Chart.AppVersion -}}
{{- end -}}
{{- end -}}

{{/* Rule of a NetworkPolicy for /metrics, /livez and /readyz: Prometheus, and the test pod. */}}
{{- define "llmservice-operator.observers" -}}
ports:
  - port: health
    protocol: TCP
from:
  - podSelector:
      matchLabels:
        {{- include "llmservice-operator.selectorLabels" (dict "root" . "component" "test") | nindent 8 }}
  {{- with .Values.monitoring.namespace }}
  - namespaceSelector:
      matchLabels:
        kubernetes.io/metadata.name: {{ . }}
    {{- with $.Values.monitoring.podLabels }}
    podSelector:
      matchLabels:
        {{- toYaml . | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end -}}
